"""fp8 weights: four exponent bits, three of mantissa (e4m3fn; Micikevicius et al. 2022, section 3).

The scale brings the largest value to 448, the format's own. It is shared by a whole tensor, by each
row, or by blocks of 128 rows and 128 columns (DeepSeek-V3 report, section 3.3.2); blocks are kept as a
scale for each row and group, so that rows can be fused and cut over shards freely.
"""

import ml_dtypes
import numpy as np

from jaxinfer.quantize.grid import check_finite

TOP = 448.0
BLOCK_ROWS = 128
SHARED = ("tensor", "channel", "block")


def scale_of(top: np.ndarray) -> np.ndarray:
    """max|w| of whatever shares a scale -> the scale, float32; 1 for zeros (and what float32 takes for
    them).
    """
    scale = (top / TOP).astype(np.float32)
    return np.where(scale > 0, scale, np.float32(1))


def block_tops(w: np.ndarray, group: int) -> np.ndarray:
    """max|w| [out, in / group] of each row's groups."""
    rows, columns = w.shape
    return np.abs(w).reshape(rows, columns // group, group).max(axis=2)


def round_fp8(w: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """w [out, in] float32, scale [out] or [out, groups] -> values float8_e4m3fn [out, in]."""
    check_finite(w, "fp8")
    wide = scale[:, None] if scale.ndim == 1 else np.repeat(scale, w.shape[1] // scale.shape[1], 1)
    return np.clip(w / wide, -TOP, TOP).astype(ml_dtypes.float8_e4m3fn)
