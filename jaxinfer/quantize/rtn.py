"""Round to nearest: the method that needs no data, and the grid that others round to."""

import numpy as np


def round_rows(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """w [out, in] float -> (values int8, scale [out] float32), symmetric, round to nearest.

    A row of zeros gets scale 1. Infinities and NaN are refused: no scale can hold them.
    """
    w = np.asarray(w, np.float32)
    top = np.abs(w).max(axis=1, initial=0.0)
    if not np.isfinite(top).all():
        raise ValueError(
            "int8 quantization needs finite weights, got infinities or NaN; repair the checkpoint"
        )
    scale = np.where(top > 0, top / 127.0, 1.0).astype(np.float32)
    return np.rint(w / scale[:, None]).astype(np.int8), scale
