"""bitsandbytes (github.com/bitsandbytes-foundation/bitsandbytes): LLM.int8() weights, int8 [out, in]
with SCB [out], max|w| of each row; and four bits, nf4 (Dettmers et al. 2023, "QLoRA", section 3) or fp4,
in blocks along the flattened weight, whose scales may be quantized once more.

int8 is held as it is; activations are multiplied unrounded, as bitsandbytes does only where they are
outliers. The levels of nf4 and fp4 are on no grid of integers: those weights become floats.
"""

from collections.abc import Mapping
from functools import partial

import numpy as np

from jaxinfer.weights.formats.packed import (
    Format,
    Packed,
    Rows,
    Tensors,
    rows,
    scales,
    whole,
    wrong,
)
from jaxinfer.weights.formats.settings import flag, one_of
from jaxinfer.weights.safetensors_file import CheckpointError, Entry, parse_json

KINDS = ("nf4", "fp4")
STATE = "quant_state.bitsandbytes__"


def read(config: Mapping) -> Format:
    """The format that a quantization_config describes; ValueError."""
    eight, four = flag(config, "load_in_8bit", False), flag(config, "load_in_4bit", False)
    if eight == four:
        raise ValueError(
            f"quantization_config needs one of load_in_8bit and load_in_4bit, got {eight} and {four}"
        )
    if eight:
        return Format("bitsandbytes int8", _find_eight)
    kind = one_of(config, ("bnb_4bit_quant_type",), KINDS, "fp4")
    return Format(f"bitsandbytes {kind}", partial(_find_four, kind=kind))


def _find_eight(tensors: Tensors, name: str, shape: tuple[int, int]) -> Packed | None:
    if not tensors.has(name) or tensors.found[name].dtype != "I8":
        return None
    stem = name.removesuffix(".weight")
    values = tensors.take(name, (shape,), "I8")
    scale = tensors.take(f"{stem}.SCB", ((shape[0],),), "F32")
    if tensors.has(f"{stem}.weight_format"):
        kind = tensors.take(f"{stem}.weight_format", ((), (1,)), "U8")
        if whole(kind).item() != 0:
            raise wrong(f"{stem}.weight_format", kind, "0, rows", f"{whole(kind).item()}")

    def read(start: int, stop: int) -> Rows:
        own = scales(f"{stem}.SCB", scale, rows(scale, start, stop)) / np.float32(127)
        return Rows(rows(values, start, stop), own[:, None])

    return Packed("int8", shape[1], np.dtype(np.float32), (values, scale), read, method="int8")


def _find_four(tensors: Tensors, name: str, shape: tuple[int, int], kind: str) -> Packed | None:
    if not tensors.has(name) or tensors.found[name].dtype != "U8":
        return None
    out, columns = shape
    values = tensors.take(name, ((out * columns // 2, 1), (1, out * columns // 2)), "U8")
    if columns % 2:
        raise wrong(name, values, "an even number of columns", f"{columns}")
    if not tensors.has(f"{name}.{STATE}{kind}"):
        raise CheckpointError(
            f"{values.path}: tensor {name!r} needs {name}.{STATE}{kind}, which is missing; fetch the "
            "checkpoint again"
        )
    described = tensors.found[f"{name}.{STATE}{kind}"]
    described = tensors.take(f"{name}.{STATE}{kind}", (described.shape[:1],), "U8")
    state = _state(name, described, shape)
    many = -(-out * columns // state["blocksize"])
    code = tensors.take(f"{name}.quant_map", ((16,),), "F32")
    double = "nested_blocksize" in state
    absmax = tensors.take(f"{name}.absmax", ((many,),), "U8" if double else "F32")
    entries = [values, described, code, absmax]
    if double:
        coarse = (-(-many // state["nested_blocksize"]),)
        entries.append(tensors.take(f"{name}.nested_absmax", (coarse,), "F32"))
        entries.append(tensors.take(f"{name}.nested_quant_map", ((256,),), "F32"))

    def read(start: int, stop: int) -> Rows:
        flat = Entry(values.path, "U8", (values.size,), values.offset, values.size)
        octets = rows(flat, start * columns // 2, stop * columns // 2)
        table = scales(f"{name}.quant_map", code, whole(code))
        found = np.stack([table[octets >> 4], table[octets & 15]], -1).reshape(-1, columns)
        place = np.arange(start * columns, stop * columns) // state["blocksize"]
        return Rows(found * _absmax(name, state, entries[3:])[place].reshape(-1, columns))

    return Packed(None, columns, np.dtype(np.float32), tuple(entries), read)


def _absmax(name: str, state: Mapping, entries: list[Entry]) -> np.ndarray:
    """The scale of every block, float32."""
    first = whole(entries[0])
    if len(entries) == 1:
        return scales(f"{name}.absmax", entries[0], first)
    coarse = scales(f"{name}.nested_absmax", entries[1], whole(entries[1]))
    table = scales(f"{name}.nested_quant_map", entries[2], whole(entries[2]))
    block = np.arange(len(first)) // state["nested_blocksize"]
    return table[first] * coarse[block] + np.float32(state["nested_offset"])


def _state(name: str, entry: Entry, shape: tuple[int, int]) -> dict:
    """What the writer noted beside a four-bit weight, checked."""
    state = parse_json(whole(entry).tobytes(), entry.path, f"the state of tensor {name!r}")
    keys = ["blocksize"] + (["nested_blocksize"] if "nested_blocksize" in state else [])
    for key in keys:
        if type(state.get(key)) is not int or state[key] < 1:
            raise wrong(name, entry, f"a positive {key}", f"{state.get(key)!r}")
    if "nested_blocksize" in state:
        offset = state.get("nested_offset")
        if not isinstance(offset, (int, float)) or not np.isfinite(offset):
            raise wrong(name, entry, "a finite nested_offset", f"{offset!r}")
    if state.get("shape") != list(shape):
        raise wrong(name, entry, f"the shape {list(shape)}", f"{state.get('shape')!r}")
    return state
