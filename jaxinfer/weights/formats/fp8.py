"""Weights in float8_e4m3fn beside their scales: by blocks of 128 rows and columns in weight_scale_inv
(DeepSeek-V3's `inference/fp8_cast_bf16.py`; Qwen3's FP8 checkpoints), or one for all in weight_scale;
and FBGEMM's, a scale a row. Activations are multiplied as they are; the scales that some checkpoints
have for them are not read.
"""

from collections.abc import Mapping
from functools import partial

import numpy as np

from jaxinfer.weights.formats import blocks
from jaxinfer.weights.formats.packed import (
    SCALES,
    Format,
    Packed,
    Rows,
    Tensors,
    finite_fp8,
    rows,
    scales,
    whole,
)
from jaxinfer.weights.formats.settings import block, one_of

IGNORED = ("input_scale", "activation_scale", "input_scale_ub", "k_scale", "v_scale")
FLOAT8 = ("F8_E4M3",)


def read(config: Mapping) -> Format:
    """The format of quant_method "fp8"; ValueError."""
    one_of(config, ("activation_scheme",), ("dynamic", "static"), "dynamic")
    one_of(config, ("fmt",), ("e4m3", "float8_e4m3fn"), "e4m3")
    one_of(config, ("scale_fmt",), ("float", "ue8m0"), "float")
    given = config.get("weight_block_size")
    size = None if given is None else block(given, "weight_block_size")
    words = "" if size is None else f", blocks of {size[0]}x{size[1]}"
    return Format(f"fp8 e4m3{words}", partial(_find, size=size), IGNORED)


def read_fbgemm(config: Mapping) -> Format:
    """The format of quant_method "fbgemm_fp8", a scale a row."""
    return Format("fbgemm_fp8 e4m3, a scale a row", partial(_find, size=(1, 0)), IGNORED)


def _find(
    tensors: Tensors, name: str, shape: tuple[int, int], size: tuple[int, int] | None
) -> Packed | None:
    if not tensors.has(name) or tensors.found[name].dtype not in FLOAT8:
        return None
    inverse = f"{name}_scale_inv"
    scale = inverse if tensors.has(inverse) or size not in (None, (1, 0)) else f"{name}_scale"
    return packed(tensors, name, scale, shape, size)


def packed(tensors: Tensors, name: str, scale_name: str, shape: tuple[int, int], size) -> Packed:
    """A weight of float8 values; size: rows and columns of its blocks, columns 0 for all, None: one
    scale in all.
    """
    out, columns = shape
    values = tensors.take(name, (shape,), *FLOAT8)
    group = columns if size is None else size[1] or columns
    shapes = ((), (1,), (1, 1)) if size is None else (blocks.shape(out, columns, (size[0], group)),)
    scale = tensors.take(scale_name, shapes, *SCALES, "F8_E8M0")

    def read_packed(start: int, stop: int) -> Rows:
        found = finite_fp8(name, values, rows(values, start, stop))
        if size is None:
            own = np.broadcast_to(whole(scale).reshape(1, 1), (stop - start, 1))
        else:
            own = blocks.read(scale, size[0], start, stop)
        return Rows(found, scales(scale_name, scale, own))

    return Packed("fp8", group, np.dtype(np.float32), (values, scale), read_packed, method="fp8")
