"""Four-bit floats, e2m1: MXFP4 (OCP Microscaling Formats 1.0, section 5.3; groups of 32 with a power of
two each, as in gpt-oss) and NVFP4 (groups of 16 with a float8_e4m3fn scale, over one scale for all), as
compressed-tensors stores them: weight_packed [out, in / 2] uint8, the lower nibble first.

Their levels are no uniform grid, but all are float8_e4m3fn numbers: weights are held so, exactly, in
eight bits.
"""

import ml_dtypes
import numpy as np

from jaxinfer.weights.formats.packed import (
    SCALES,
    Packed,
    Rows,
    Tensors,
    rows,
    scales,
    whole,
    wrong,
)

MXFP4, NVFP4 = "mxfp4-pack-quantized", "nvfp4-pack-quantized"
LEVELS = np.asarray([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
GROUPS = {MXFP4: 32, NVFP4: 16}


def levels(packed: np.ndarray) -> np.ndarray:
    """uint8 [..., n] -> float8_e4m3fn [..., 2 n], the lower nibble first."""
    table = LEVELS.astype(ml_dtypes.float8_e4m3fn)
    return np.stack([table[packed & 15], table[packed >> 4]], -1).reshape(*packed.shape[:-1], -1)


def powers(exponents: np.ndarray) -> np.ndarray:
    """e8m0 scales, uint8 -> float32 2 ** (e - 127); 255 is NaN."""
    return exponents.astype(np.uint8).view(ml_dtypes.float8_e8m0fnu).astype(np.float32)


def find(tensors: Tensors, stem: str, shape: tuple[int, int], layout: str) -> Packed:
    """The weight whose tensors start with `stem`; layout: MXFP4 or NVFP4."""
    out, columns = shape
    group = GROUPS[layout]
    values = tensors.take(f"{stem}.weight_packed", ((out, columns // 2),), "U8")
    if columns % group:
        raise wrong(f"{stem}.weight_packed", values, f"columns in groups of {group}", f"{columns}")
    kinds = ("U8", "F8_E8M0") if layout == MXFP4 else ("F8_E4M3",)
    scale = tensors.take(f"{stem}.weight_scale", ((out, columns // group),), *kinds)
    above = None
    if layout == NVFP4:
        above = tensors.take(f"{stem}.weight_global_scale", ((), (1,)), *SCALES)

    def read(start: int, stop: int) -> Rows:
        own = rows(scale, start, stop)
        own = powers(own.view(np.uint8)) if above is None else own.astype(np.float32)
        if above is not None:
            own = own / whole(above).astype(np.float32).reshape(1, 1)
        found = levels(rows(values, start, stop))
        return Rows(found, scales(f"{stem}.weight_scale", scale, own))

    entries = (values, scale) + (() if above is None else (above,))
    return Packed("fp8", group, np.dtype(np.float32), entries, read, method="fp8")
