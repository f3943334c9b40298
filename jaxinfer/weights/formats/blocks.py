"""Scales of blocks of rows and columns, as a scale for each row and group of columns."""

import numpy as np

from jaxinfer.weights.safetensors_file import NUMBERS, Entry, read_rows


def shape(out: int, columns: int, block: tuple[int, int]) -> tuple[int, int]:
    """How many blocks a weight [out, in] has, the last ones perhaps smaller."""
    return -(-out // block[0]), -(-columns // block[1])


def read(entry: Entry, rows_each: int, start: int, stop: int) -> np.ndarray:
    """The scales [n, groups] of rows start .. stop, in the file's type."""
    first, last = start // rows_each, -(-stop // rows_each)
    held = np.empty((last - first, *entry.shape[1:]), NUMBERS[entry.dtype])
    read_rows(entry, first, last, held)
    return np.repeat(held, rows_each, axis=0)[start - first * rows_each : stop - first * rows_each]
