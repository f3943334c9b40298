"""AWQ's tensors, as AutoAWQ writes them for its "gemm" kernels (github.com/casper-hansen/AutoAWQ,
`awq/modules/linear/gemm.py`): qweight [in, out / 8] packed along `out`, nibble i of a word holding
neighbour 0, 2, 4, 6, 1, 3, 5, 7; qzeros [groups, out / 8] packed alike; scales [groups, out].
"""

from collections.abc import Mapping
from dataclasses import replace

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
    whole,
    wrong,
)
from jaxinfer.weights.formats.settings import group_size, one_of
from jaxinfer.weights.formats.writing import (
    Described,
    Held,
    Settings,
    Writer,
    check_shape,
    require,
)
from jaxinfer.weights.safetensors_file import FLOATS


def read(config: Mapping) -> Format:
    """The format that a quantization_config describes; ValueError."""
    one_of(config, ("bits", "w_bit"), (4,))
    group = group_size(config, ("group_size", "q_group_size"))
    version = config.get("version", config.get("format"))
    named = {"version": version.lower() if isinstance(version, str) else version}
    one_of(named, ("version",), ("gemm",), "gemm")

    def find(tensors: Tensors, name: str, shape: tuple[int, int]) -> Packed | None:
        return _find(tensors, name, shape, group)

    return Format("awq 4 bits" + ("" if group is None else f", group {group}"), find)


def _find(tensors, name, shape, group) -> Packed | None:
    stem = name.removesuffix(".weight")
    if not tensors.has(f"{stem}.qweight"):
        return None
    out, columns = shape
    group = columns if group is None else group
    qweight = tensors.take(f"{stem}.qweight", ((columns, out // 8),), "I32")
    if out % 8 or columns % group:
        raise wrong(
            name, qweight, f"rows in eights and columns in groups of {group}", f"{list(shape)}"
        )
    qzeros = tensors.take(f"{stem}.qzeros", ((columns // group, out // 8),), "I32")
    scale = tensors.take(f"{stem}.scales", ((columns // group, out),), *SCALES)

    def read_packed(start: int, stop: int) -> Rows:
        first, last = start // 8, -(-stop // 8)
        held = words.unpack(rows(qweight, first, last, transposed=True), 4)  # [n / 8, in * 8]
        held = words.from_awq(held).reshape(last - first, columns, 8)
        values = held.transpose(0, 2, 1).reshape(-1, columns)
        zero = words.from_awq(words.unpack(whole(qzeros), 4)).T
        own = scales(f"{stem}.scales", scale, rows(scale, start, stop, transposed=True))
        return Rows(values[start - 8 * first : stop - 8 * first], own, zero[start:stop])

    entries = (qweight, qzeros, scale)
    return Packed("int4", group, FLOATS[scale.dtype], entries, read_packed, True, "int4")


def write(settings: Settings) -> Writer:
    """AWQ's tensors; symmetric weights with zero points of 8."""
    require(settings, "awq", ("int4",))
    config = {
        "quant_method": "awq",
        "bits": 4,
        "group_size": settings.group or -1,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": list(settings.plain) or None,
    }
    points = replace(settings, zero=True)

    def tensors(stem: str, shape: tuple[int, int]) -> Described:
        check_shape("awq", stem, shape, 8)
        out, columns = shape
        groups, word = columns // (settings.group or columns), np.dtype(np.int32)
        return {
            f"{stem}.qweight": ((columns, out // 8), word),
            f"{stem}.qzeros": ((groups, out // 8), word),
            f"{stem}.scales": ((groups, out), settings.scale),
        }

    def arrays(stem: str, held: Held) -> dict[str, np.ndarray]:
        held = points.regroup(held)
        assert held.zero is not None
        return {
            f"{stem}.qweight": words.pack(words.to_awq(held.values.T), 4),
            f"{stem}.qzeros": words.pack(words.to_awq(held.zero.T.astype(np.uint8)), 4),
            f"{stem}.scales": held.scale.T,
        }

    return Writer(config, tensors, arrays)
