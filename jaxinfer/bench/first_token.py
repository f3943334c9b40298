"""What a fresh process does until its first token, with a time for each part; one JSON line on stdout.

`startup` runs it in processes of their own. It asks for everything by one JSON argument, and takes
the time at which its interpreter began to run code.
"""

import contextlib
import json
import sys
import time
from collections.abc import Iterator

import jax
import numpy as np

from jaxinfer import compile_cache
from jaxinfer.bench import environment, subject
from jaxinfer.model import Model

EVENTS = {
    "/jax/core/compile/jaxpr_trace_duration": "trace",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "trace",
    "/jax/core/compile/backend_compile_duration": "compile",
}


def main(began: float) -> None:
    """began: `time.time()` of the interpreter's first line. Arguments: sys.argv[1], JSON."""
    imported = time.time()
    asked = json.loads(sys.argv[1])
    compile_cache.enable(asked["cache"])
    jax.block_until_ready(jax.numpy.zeros(()))
    device = time.time()
    names = ("source", "dtype", "quantize", "kv_dtype")
    held = subject.prepare(asked["model"], **{name: asked[name] for name in names})
    jax.block_until_ready(held.params)
    loaded = time.time()
    prompt = np.random.default_rng(0).integers(0, held.config.vocab_size, asked["prompt"]).tolist()
    model = Model(held.params, held.config, max_slots=1, kv_dtype=held.kv_dtype)
    with _spans() as spans:
        model.generate(prompt, temperature=0, max_new_tokens=1)
    first = time.time()
    model.generate(prompt, temperature=0, max_new_tokens=1)
    again = time.time() - first
    traced, compiled = (_covered(spans[name]) for name in ("trace", "compile"))
    json.dump(
        {
            **held.describe(),
            "interpreter_s": began - asked["start"],
            "import_s": imported - began,
            "device_s": device - imported,
            "load_s": loaded - device,
            "trace_s": traced,
            "compile_s": compiled,
            "run_s": first - loaded - traced - compiled,
            "first_token_s": first - asked["start"],
            "next_first_token_s": again,
            "hardware": environment.hardware(),
        },
        sys.stdout,
    )


@contextlib.contextmanager
def _spans() -> Iterator[dict[str, list[tuple[float, float]]]]:
    """When JAX traces and compiles while this is open: (start, end) in seconds."""
    spans: dict[str, list[tuple[float, float]]] = {"trace": [], "compile": []}

    def note(event: str, start_time: float, end_time: float, **kwargs: str | int) -> None:
        if event in EVENTS:
            spans[EVENTS[event]].append((start_time, end_time))

    jax.monitoring.register_event_time_span_listener(note)
    try:
        yield spans
    finally:
        jax.monitoring.unregister_event_time_span_listener(note)


def _covered(spans: list[tuple[float, float]]) -> float:
    """Seconds that spans cover, those inside others counted once."""
    total, reached = 0.0, 0.0
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
