"""Round to nearest: the method that needs no data.

Eight bits with a scale for each row (output channel; "vector-wise" in LLM.int8(), Dettmers et al. 2022,
section 2.1), or four with a scale, perhaps a zero point, for each group of neighbours along a row.
"""

import numpy as np

from jaxinfer.quantize import grid


def round_rows(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """w [out, in] float -> (values int8, scale [out] float32), symmetric, round to nearest.

    A row of zeros gets scale 1. Infinities and NaN are refused: no scale can hold them.
    """
    w = np.asarray(w, np.float32)
    grid.check_finite(w, "int8")
    scale = grid.eight_bit(w).astype(np.float32)
    return grid.bytes_of(w, scale).astype(np.int8), scale


def round_groups(
    w: np.ndarray, group: int, symmetric: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """w [out, in] float -> (packed nibbles int32 [out, in / 8], scale and zero [out, in / group]).

    scale and zero are float32 that bfloat16 holds; zero is None where symmetric. ValueError: groups
    that do not divide `in`, infinities, NaN.
    """
    w = np.asarray(w, np.float32)
    out, columns = w.shape
    if columns % group or columns % 8:
        raise ValueError(
            f"four-bit weights need columns that are a multiple of 8 and of the group, got "
            f"{columns=}, {group=}"
        )
    grid.check_finite(w, "int4")
    grouped = w.reshape(out, columns // group, group)
    scale, zero = grid.four_bit(grouped, symmetric)
    numbers = grid.nibbles(grouped, scale, zero)
    return grid.pack(numbers.reshape(out, columns)), scale, zero
