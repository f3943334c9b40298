"""GPTQ's tensors, as AutoGPTQ and GPTQModel write them (github.com/ModelCloud/GPTQModel,
`nn_modules/qlinear`): qweight [in * bits / 32, out] packed along `in`, scales [groups, out], qzeros
[groups, out * bits / 32] packed along `out`, and g_idx [in], the group of each column.

Checkpoint format "gptq" stores a zero point less one (modulo 2 ** bits), "gptq_v2" as it is. With
act-order, columns were rounded by falling importance and grouped in that order: g_idx is then no
staircase, and activations are put in the order of the groups at run time.
"""

import re
from collections.abc import Mapping

import numpy as np

from jaxinfer.weights.formats import words
from jaxinfer.weights.formats.packed import (
    SCALES,
    Format,
    Packed,
    Rows,
    Tensors,
    rows,
    scales,
    sorted_columns,
    whole,
    wrong,
)
from jaxinfer.weights.formats.settings import flag, group_size, mapping, one_of
from jaxinfer.weights.formats.writing import (
    Described,
    Held,
    Settings,
    Writer,
    check_shape,
    require,
)
from jaxinfer.weights.safetensors_file import FLOATS

VERSIONS = ("gptq", "gptq_v2")


def read(config: Mapping) -> Format:
    """The format that a quantization_config describes; ValueError."""
    bits = one_of(config, ("bits",), (4, 8))
    group, symmetric = group_size(config), flag(config, "sym", False)
    version = one_of(config, ("checkpoint_format", "format"), VERSIONS, "gptq")
    one_of(config, ("is_marlin_format",), (False,), False)
    changed = [name for name in mapping(config.get("dynamic"), "dynamic") if name[:2] != "-:"]
    if changed:
        raise ValueError(
            f"quantization_config needs the same settings for all modules, got dynamic for {changed[0]!r}"
        )

    def find(tensors: Tensors, name: str, shape: tuple[int, int]) -> Packed | None:
        return _find(tensors, name, shape, bits, group, symmetric, 1 if version == "gptq" else 0)

    grouped = "" if group is None else f", group {group}"
    return Format(f"{version} {bits} bits{grouped}", find)


def _find(tensors, name, shape, bits, group, symmetric, offset) -> Packed | None:
    stem = name.removesuffix(".weight")
    if not tensors.has(f"{stem}.qweight"):
        return None
    out, columns = shape
    each = 32 // bits
    group = columns if group is None else min(group, columns)
    groups = -(-columns // group)
    qweight = tensors.take(f"{stem}.qweight", ((columns // each, out),), "I32")
    if columns % each or out % each:
        raise wrong(
            name,
            qweight,
            f"rows and columns in multiples of {each}",
            f"{list(shape)} of {bits} bits",
        )
    qzeros = tensors.take(f"{stem}.qzeros", ((groups, out // each),), "I32")
    scale = tensors.take(f"{stem}.scales", ((groups, out),), *SCALES)
    index = None
    if tensors.has(f"{stem}.g_idx"):
        index = tensors.take(f"{stem}.g_idx", ((columns,),), "I32", "I64")
    middle = 1 << (bits - 1)

    def order():
        return None if index is None else sorted_columns(f"{stem}.g_idx", index, group)

    def read_packed(start: int, stop: int) -> Rows:
        values = words.unpack(rows(qweight, start, stop, transposed=True), bits)
        zero = (words.unpack(whole(qzeros), bits).T[start:stop] + offset) & (2**bits - 1)
        own = scales(f"{stem}.scales", scale, rows(scale, start, stop, transposed=True))
        if symmetric and (zero != middle).any():
            raise wrong(
                f"{stem}.qzeros", qzeros, f"zero points of {middle} where sym is true", "others"
            )
        if bits == 8:
            values = (values ^ 128).view(np.int8)
            zero = zero.astype(np.int32) - middle
        return Rows(values, own, None if symmetric else zero)

    entries = (qweight, qzeros, scale) + (() if index is None else (index,))
    kind = "int4" if bits == 4 else "int8"
    dtype = FLOATS[scale.dtype]
    return Packed(kind, group, dtype, entries, read_packed, not symmetric, kind, order)


def write(settings: Settings) -> Writer:
    """GPTQ's tensors. Symmetric weights go by "gptq", the version that more programs read; zero points
    by "gptq_v2", since "gptq" cannot tell 0 from 16 in all of them.
    """
    require(settings, "gptq", ("int4", "int8"), order=True)
    bits = 4 if settings.kind == "int4" else 8
    each, offset, middle = 32 // bits, 0 if settings.zero else 1, 1 << (bits - 1)
    config = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": settings.group or -1,
        "sym": not settings.zero,
        "desc_act": settings.order,
        "checkpoint_format": VERSIONS[0 if offset else 1],
        "lm_head": False,
    }
    if settings.plain:
        config["dynamic"] = {f"-:^{re.escape(module)}$": {} for module in settings.plain}

    def tensors(stem: str, shape: tuple[int, int]) -> Described:
        check_shape("gptq", stem, shape, each)
        out, columns = shape
        groups, word = columns // (settings.group or columns), np.dtype(np.int32)
        return {
            f"{stem}.qweight": ((columns // each, out), word),
            f"{stem}.qzeros": ((groups, out // each), word),
            f"{stem}.scales": ((groups, out), settings.scale),
            f"{stem}.g_idx": ((columns,), word),
        }

    def arrays(stem: str, held: Held) -> dict[str, np.ndarray]:
        held = settings.regroup(held)
        columns, groups = held.values.shape[1], held.scale.shape[1]
        values, index = held.values, np.arange(columns) // (columns // groups)
        if held.order is not None:
            back = np.argsort(held.order)
            values, index = values[:, back], index[back]
        values = values if bits == 4 else values.view(np.uint8) ^ 128
        zero = np.full(held.scale.shape, middle) if held.zero is None else held.zero
        zero = zero if bits == 4 or held.zero is None else zero + middle
        stored = (zero.astype(np.int32) - offset) & (2**bits - 1)
        return {
            f"{stem}.qweight": words.pack(values, bits).T,
            f"{stem}.qzeros": words.pack(stored.T.astype(np.uint8), bits),
            f"{stem}.scales": held.scale.T,
            f"{stem}.g_idx": index.astype(np.int32),
        }

    return Writer(config, tensors, arrays)
