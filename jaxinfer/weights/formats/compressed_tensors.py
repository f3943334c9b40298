"""Checkpoints of compressed-tensors (github.com/vllm-project/compressed-tensors, `compressors/`), which
LLM Compressor writes: weights of 4 or 8 bits packed along `in` into int32 ("pack-quantized"), int8
("int-quantized") or float8_e4m3fn ("float-quantized"), and four-bit floats (`mx`), with scales by
tensor, channel, group or block, and perhaps zero points.

Where the file says that activations are int8 too, rounded as they come, they are here ("w8a8"). Scales
kept for activations ahead of time are not read: int8 activations are rounded by their own maximum,
8-bit floats are not rounded.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from jaxinfer.weights.formats import blocks, mx, words
from jaxinfer.weights.formats.fp8 import packed as packed_fp8
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
from jaxinfer.weights.formats.settings import WHERE, block, flag, mapping, one_of, positive
from jaxinfer.weights.safetensors_file import FLOATS

FORMATS = (
    "pack-quantized",
    "int-quantized",
    "float-quantized",
    "naive-quantized",
    mx.MXFP4,
    mx.NVFP4,
)
STRATEGIES = ("tensor", "channel", "group", "block", "tensor_group")
IGNORED = (
    *("input_scale", "input_zero_point", "input_global_scale", "output_scale"),
    *("k_scale", "v_scale", "q_scale", "k_zero_point", "v_zero_point"),
)


@dataclass(frozen=True)
class Scheme:
    """One of a config's groups: how the weights of its targets are held. size: the rows and columns
    that share a scale, 0 for all of them.
    """

    targets: tuple[str, ...]
    layout: str
    bits: int
    floats: bool
    symmetric: bool
    strategy: str
    size: tuple[int, int]
    integer_activations: bool

    def __str__(self):
        kind = f"{'fp' if self.floats else 'int'}{self.bits}"
        by = f"group {self.size[1]}" if "group" in self.strategy else f"a scale a {self.strategy}"
        return f"{kind} ({self.layout}, {by}{'' if self.symmetric else ', zero points'})"


def read(config: Mapping) -> Format:
    """The format that a quantization_config describes; ValueError."""
    sparsity = mapping(config.get("sparsity_config"), "sparsity_config")
    one_of(sparsity, ("format",), ("dense",), "dense")
    groups = mapping(config.get("config_groups"), "config_groups")
    layout = config.get("format", "dense")
    if layout == "dense" or not groups:
        raise ValueError(
            f"{WHERE} needs a format among {', '.join(FORMATS)} and config_groups, got {layout!r} with "
            f"{len(groups)} groups"
        )
    schemes = tuple(_scheme(name, mapping(value, name), layout) for name, value in groups.items())

    def find(tensors: Tensors, name: str, shape: tuple[int, int]) -> Packed | None:
        return _find(tensors, name, shape, schemes)

    return Format(f"compressed-tensors {' and '.join(map(str, schemes))}", find, IGNORED)


def _scheme(name: str, config: Mapping, layout: str) -> Scheme:
    weights = mapping(config.get("weights"), f"{name}.weights")
    own = config.get("format") or layout
    layout = one_of({"format": own}, ("format",), FORMATS)
    targets = config.get("targets")
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise ValueError(f"{WHERE} needs {name}.targets to be a list of names, got {targets!r}")
    floats = one_of(weights, ("type",), ("int", "float"), "int") == "float"
    four = layout in (mx.MXFP4, mx.NVFP4)
    allowed = (4,) if four else (4, 8) if layout == "pack-quantized" else (8,)
    bits = one_of(weights, ("num_bits",), allowed)
    if floats != (four or layout == "float-quantized") and layout != "naive-quantized":
        raise ValueError(
            f"{WHERE} needs weights that suit {layout}, got type {weights.get('type')!r}"
        )
    strategy = one_of(weights, ("strategy",), STRATEGIES, _implied(weights))
    symmetric = flag(weights, "symmetric", True)
    if floats and not symmetric:
        raise ValueError(f"{WHERE} needs floats to be symmetric, got symmetric: false in {name}")
    match strategy:
        case "group" | "tensor_group":
            size = 1, positive(weights, "group_size")
        case "block":
            size = block(weights.get("block_structure"), "block_structure")
        case _:
            size = (0 if strategy == "tensor" else 1), 0
    activations = mapping(config.get("input_activations"), f"{name}.input_activations")
    integers = bool(activations) and activations.get("type", "int") == "int"
    if integers:
        one_of(activations, ("num_bits",), (8,))
    return Scheme(tuple(targets), layout, bits, floats, symmetric, strategy, size, integers)


def _implied(weights: Mapping) -> str:
    """The strategy where none is named."""
    size = weights.get("group_size")
    return "tensor" if size is None else "channel" if size == -1 else "group"


def _matching(schemes: tuple[Scheme, ...], module: str) -> Scheme | None:
    """A module's scheme: by its name, else by a pattern, else as one of all linear maps."""
    for scheme in schemes:
        if module in scheme.targets:
            return scheme
    for scheme in schemes:
        patterns = [target[3:] for target in scheme.targets if target.startswith("re:")]
        if any(re.match(pattern, module) for pattern in patterns):
            return scheme
    return next((scheme for scheme in schemes if "Linear" in scheme.targets), None)


def _find(tensors, name, shape, schemes) -> Packed | None:
    stem = name.removesuffix(".weight")
    whole_numbers = tensors.has(name) and tensors.found[name].dtype in ("I8", "F8_E4M3")
    if not whole_numbers and not tensors.has(f"{stem}.weight_packed"):
        return None
    scheme = _matching(schemes, stem)
    if scheme is None:
        file = tensors.found[name if whole_numbers else f"{stem}.weight_packed"]
        raise wrong(name, file, "a group of config_groups that it is a target of", "none")
    if scheme.layout in (mx.MXFP4, mx.NVFP4):
        return mx.find(tensors, stem, shape, scheme.layout)
    if scheme.floats:
        size = None if scheme.strategy == "tensor" else scheme.size
        return packed_fp8(tensors, name, f"{stem}.weight_scale", shape, size)
    return _integers(tensors, name, stem, shape, scheme)


def _integers(tensors: Tensors, name: str, stem: str, shape, scheme: Scheme) -> Packed:
    out, columns = shape
    bits, (rows_each, group) = scheme.bits, scheme.size
    rows_each, group = rows_each or out, group or columns
    packs = scheme.layout == "pack-quantized"
    if packs:
        wide = (out, -(-columns * bits // 32))
        values = tensors.take(f"{stem}.weight_packed", (wide,), "I32")
        if tensors.has(f"{stem}.weight_shape"):
            said = tensors.take(f"{stem}.weight_shape", ((2,),), "I64", "I32")
            if tuple(whole(said)) != shape:
                raise wrong(
                    f"{stem}.weight_shape", said, f"{list(shape)}", f"{whole(said).tolist()}"
                )
    else:
        values = tensors.take(name, (shape,), "I8")
    held = blocks.shape(out, columns, (rows_each, group))
    shapes = ((), (1,), held) if scheme.strategy == "tensor" else (held,)
    if scheme.strategy == "channel":
        shapes = (held, (out,))
    scale = tensors.take(f"{stem}.weight_scale", shapes, *SCALES)
    zero = None
    if not scheme.symmetric:
        packed_shape = (-(-held[0] * bits // 32), *held[1:])
        zero = tensors.take(f"{stem}.weight_zero_point", (*shapes, packed_shape), "I8", "I32")
    order = _order_of(tensors, stem, columns, group)
    entries = tuple(entry for entry in (values, scale, zero) if entry is not None)
    integer = scheme.integer_activations and group == columns and zero is None and bits == 8
    return Packed(
        kind="int4" if bits == 4 else "int8",
        group=group,
        scale=FLOATS[scale.dtype],
        entries=entries,
        read=partial(_read, stem, values, scale, zero, bits, packs, columns, rows_each, held),
        zero=zero is not None,
        method="w8a8" if integer else "int4" if bits == 4 else "int8",
        order=order,
    )


def _read(stem, values, scale, zero, bits, packs, columns, rows_each, held, start, stop) -> Rows:
    found = rows(values, start, stop)
    if packs:
        found = words.unpack(found, bits)[:, :columns]
        found = (found ^ 128).view(np.int8) if bits == 8 else found
    own = _spread(whole(scale), held, rows_each, start, stop)
    own = scales(f"{stem}.weight_scale", scale, own)
    if zero is None:
        return Rows(found, own)
    middle = 1 << (bits - 1)
    shift = middle if bits == 4 else 0  # nibbles count from 0, bytes from -128
    points = whole(zero)
    if zero.dtype == "I32":
        points = words.unpack(points.T, bits)[:, : held[0]].T.astype(np.int32) - middle
    points = _spread(points.astype(np.int32), held, rows_each, start, stop) + shift
    return Rows(found, own, points)


def _spread(value: np.ndarray, held, rows_each: int, start: int, stop: int) -> np.ndarray:
    return value.reshape(held)[np.arange(start, stop) // rows_each]


def _order_of(tensors: Tensors, stem: str, columns: int, group: int):
    """How to learn the order of the columns where weight_g_idx gives it (older act-order files)."""
    name = f"{stem}.weight_g_idx"
    if not tensors.has(name):
        return lambda: None
    entry = tensors.take(name, ((columns,),), "I32", "I64")
    return partial(sorted_columns, name, entry, group)
