"""What the hardware allows: floors of time and memory for a model on a chip, from first principles.

`decode` and `prefill` give a `Bound` for (model config, chip, batch, context, formats, mesh);
`parts` the FLOPs and bytes it is made of; `CHIPS` the chips as data. It runs nothing and knows no
arrays: everything follows from a `ModelConfig` and the layout of its parameters.
"""

from jaxinfer.roofline.bounds import (
    Bound,
    Mesh,
    attainable,
    critical_batch,
    decode,
    prefill,
)
from jaxinfer.roofline.chips import CHIPS, Chip, Interconnect
from jaxinfer.roofline.formats import FORMATS, Format
from jaxinfer.roofline.kv import LayerKV
from jaxinfer.roofline.lecture import Lecture, lecture
from jaxinfer.roofline.memory import Memory, memory
from jaxinfer.roofline.speculation import Speculation, expected_tokens, speculate
from jaxinfer.roofline.work import Work, parts

__all__ = [
    "CHIPS",
    "FORMATS",
    "Bound",
    "Chip",
    "Format",
    "Interconnect",
    "LayerKV",
    "Lecture",
    "Memory",
    "Mesh",
    "Speculation",
    "Work",
    "attainable",
    "critical_batch",
    "decode",
    "expected_tokens",
    "lecture",
    "memory",
    "parts",
    "prefill",
    "speculate",
]
