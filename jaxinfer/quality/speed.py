"""How fast a side decodes: the engine's own loop with one sequence, as `jaxinfer bench decode` runs it."""

import dataclasses

from jaxinfer.bench import decode
from jaxinfer.bench.subject import Subject
from jaxinfer.bench.timing import Timing, measure
from jaxinfer.quality.settings import Side

CONTEXT = 256  # positions that the last step has before it, or the model's if less
STEPS = 32


def timed(side: Side, repeats: int = 5) -> Side:
    """The same side with `decode_s`, the median of `repeats` runs. ValueError over several devices."""
    return dataclasses.replace(side, decode_s=decode_time(side, repeats).median)


def decode_time(side: Side, repeats: int = 5) -> Timing:
    """Seconds of one step of one sequence, some CONTEXT positions long."""
    model = side.model
    if model.mesh is not None and model.mesh.size > 1:
        raise ValueError("decoding is timed on one device; leave --mesh or --speed out")
    held = model.params.norm.scale.dtype.name
    about = "checkpoint", held, side.setting.quantize, model.kv_dtype
    subject = Subject("", model.params, model.config, *about)
    case = decode.Case(1, min(CONTEXT, model.config.max_position), STEPS)
    with side.in_force():
        loop = decode.Loop(subject, case)
        return measure(loop, loop.prepare, repeats=repeats).divided(case.taken)
