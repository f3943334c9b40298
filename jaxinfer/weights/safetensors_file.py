"""The safetensors file format: a header that is checked in full before a single tensor is read, and
block-wise reading.

A file is an 8-byte little-endian header length, a JSON header, and one byte buffer that the tensors
fill without holes or overlaps (github.com/huggingface/safetensors, section "Format"). Tensors are
read with plain reads, not through a memory map, so that a file that shrinks under us is an error
and not a bus fault. This module knows nothing of models.
"""

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

MAX_HEADER = 100_000_000
BLOCK = 1 << 20
METADATA = "__metadata__"
FLOATS = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
NUMBERS = {
    **FLOATS,
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "I16": np.dtype(np.int16),
    "I32": np.dtype(np.int32),
    "I64": np.dtype(np.int64),
}
BITS = {
    **{name: 8 * dtype.itemsize for name, dtype in FLOATS.items()},
    **{
        "BOOL": 8,
        "U8": 8,
        "I8": 8,
        "U16": 16,
        "I16": 16,
        "U32": 32,
        "I32": 32,
        "U64": 64,
        "I64": 64,
        "C64": 64,
    },
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8},
}


class CheckpointError(ValueError):
    """A checkpoint cannot be used. The message names the file, what was required, what came, and
    what to do.
    """


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: its dtype name, its shape, and the bytes offset .. offset + size of the
    file.
    """

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


def parse_json(text: bytes, path: Path, what: str) -> dict:
    """A JSON object without repeated keys, NaN or infinities; CheckpointError otherwise."""

    def pairs(items):
        found = dict(items)
        if len(found) != len(items):
            names = [name for name, _ in items]
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"the key {twice!r} appears twice")
        return found

    def constant(name):
        raise ValueError(f"{name} is not JSON")

    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=pairs, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: {what} needs to be valid JSON, got: {error}; fetch the file again"
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{path}: {what} needs to be a JSON object, got {type(value).__name__}"
        )
    return value


def read_json(path: Path, what: str) -> dict:
    """The JSON object in a (small) file."""
    try:
        if path.stat().st_size > MAX_HEADER:
            raise CheckpointError(
                f"{path}: {what} needs at most {MAX_HEADER} bytes, got {path.stat().st_size}"
            )
        return parse_json(path.read_bytes(), path, what)
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot read {what}: {error.strerror}; check the path and its rights"
        ) from error


def read_header(path: Path) -> dict[str, Entry]:
    """Every tensor of the file by name, after all that the format demands has been checked. No
    tensor is read.
    """
    try:
        with open(path, "rb") as file:
            total = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            if len(prefix) < 8:
                raise CheckpointError(
                    f"{path}: a safetensors file needs at least 8 bytes, got {len(prefix)}; fetch "
                    "the file again"
                )
            length = int.from_bytes(prefix, "little")
            if length > MAX_HEADER or length > total - 8:
                raise CheckpointError(
                    f"{path}: the header needs to fit in the file and in {MAX_HEADER} bytes, got a "
                    f"header of {length} bytes in a file of {total}; the file is truncated or not "
                    "safetensors: fetch it again"
                )
            text = file.read(length)
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot read it: {error.strerror}; check the path and its rights"
        ) from error
    if len(text) < length or not text.startswith(b"{"):
        raise CheckpointError(
            f"{path}: the header needs to be a JSON object, got {text[:16]!r}...; fetch the file "
            "again"
        )
    header = parse_json(text, path, "the safetensors header")
    _check_metadata(header.pop(METADATA, {}), path)
    entries = {name: _entry(name, item, path, 8 + length, total) for name, item in header.items()}
    _check_cover(entries, path, 8 + length, total)
    return entries


def _check_metadata(metadata, path):
    if not isinstance(metadata, dict) or not all(
        isinstance(value, str) for value in metadata.values()
    ):
        raise CheckpointError(
            f"{path}: {METADATA} needs to map names to strings, got {str(metadata)[:80]}"
        )


def _is_size(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _entry(name: str, item, path: Path, base: int, total: int) -> Entry:
    where = f"{path}: tensor {name!r}"
    if not isinstance(item, dict) or set(item) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(
            f"{where} needs exactly dtype, shape and data_offsets, got {str(item)[:80]}"
        )
    dtype, shape, offsets = item["dtype"], item["shape"], item["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise CheckpointError(
            f"{where} needs a dtype among {', '.join(BITS)}, got {str(dtype)[:40]!r}"
        )
    if not isinstance(shape, list) or not all(_is_size(n) for n in shape):
        raise CheckpointError(
            f"{where} needs a shape of non-negative integers, got {str(shape)[:80]}"
        )
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_size(n) for n in offsets):
        raise CheckpointError(
            f"{where} needs two non-negative data_offsets, got {str(offsets)[:80]}"
        )
    start, stop = offsets
    if start > stop or stop > total - base:
        raise CheckpointError(
            f"{where} needs data_offsets within the {total - base} bytes of data, got {offsets}; "
            "the file is truncated or corrupt: fetch it again"
        )
    bits = math.prod(shape) * BITS[dtype]
    if bits != 8 * (stop - start):
        raise CheckpointError(
            f"{where} of {dtype} {shape} needs {-(-bits // 8)} bytes, got {stop - start} from "
            f"{offsets}"
        )
    return Entry(path, dtype, tuple(shape), base + start, stop - start)


def _check_cover(entries, path, base, total):
    at, last = base, "the header"
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].offset, item[1].size)):
        if entry.offset != at:
            fault = "overlaps" if entry.offset < at else "leaves a hole after"
            raise CheckpointError(
                f"{path}: tensors need to follow each other without holes or overlaps, but "
                f"{name!r} {fault} {last!r} (starts at byte {entry.offset - base}, expected "
                f"{at - base}); write the file again"
            )
        at, last = at + entry.size, name
    if at != total:
        raise CheckpointError(
            f"{path}: the tensors need to fill the file, got {total - at} bytes after {last!r}; "
            "fetch the file again"
        )


def read_rows(
    entry: Entry, start: int, stop: int, out: np.ndarray, transposed: bool = False
) -> None:
    """Rows start .. stop of a tensor into `out` [stop - start, ...] (C-contiguous), in its dtype.

    transposed: the file holds `[in, out]`, and rows are counted along its second axis. At most
    BLOCK bytes (or one row) are held beside `out`. The tensor's dtype is one of NUMBERS.
    """
    dtype = NUMBERS[entry.dtype]
    across = entry.shape[0] if transposed else stop - start
    width = math.prod(entry.shape[1:]) * dtype.itemsize
    base = entry.offset if transposed else entry.offset + start * width
    direct = not transposed and dtype == out.dtype
    step = across if direct else max(1, BLOCK // max(1, width))
    buffer = out if direct else np.empty((min(step, across), *entry.shape[1:]), dtype)
    with open(entry.path, "rb", buffering=0) as file:
        file.seek(base)
        for at in range(0, across, max(1, step)):
            count = min(step, across - at)
            block = buffer[:count]
            _fill(file, block, entry)
            if transposed:
                cast(np.ascontiguousarray(block[:, start:stop].T), out[:, at : at + count], entry)
            elif not direct:
                cast(block, out[at : at + count], entry)


def _fill(file, block, entry):
    view = memoryview(block.reshape(-1).view(np.uint8))
    while view:
        count = file.readinto(view)
        if not count:
            raise CheckpointError(
                f"{entry.path}: the file shrank while it was read; fetch it again"
            )
        view = view[count:]


def cast(block: np.ndarray, out: np.ndarray, entry: Entry) -> None:
    """out[...] = block in out's dtype; CheckpointError where float16 cannot hold a finite value."""
    if block.dtype == FLOATS["BF16"] and out.dtype == np.float32 and out.flags.c_contiguous:
        # a bfloat16 is the upper half of a float32; faster than the generic conversion
        wide = out.view(np.uint32)
        wide[...] = block.view(np.uint16)
        np.left_shift(wide, 16, out=wide)
        return
    with np.errstate(over="ignore", invalid="ignore"):
        out[...] = block.astype(out.dtype)
    narrowed = out.dtype == np.float16 and block.dtype != np.float16
    if narrowed and np.isinf(out).any() and not np.isinf(block.astype(np.float32)).any():
        raise CheckpointError(
            f"{entry.path}: float16 holds values up to 65504, the checkpoint has larger ones; use "
            "dtype bfloat16"
        )


def write(
    path: Path,
    tensors: Mapping[str, tuple[tuple[int, ...], np.dtype]],
    read: Callable[[str], np.ndarray],
) -> None:
    """Write a safetensors file: the (shape, dtype) of all tensors, then `read(name)` of each."""
    names = {dtype: name for name, dtype in NUMBERS.items()}
    header: dict[str, dict] = {METADATA: {"format": "pt"}}
    at = 0
    for name, (shape, dtype) in tensors.items():
        size = math.prod(shape) * dtype.itemsize
        header[name] = {
            "dtype": names[dtype],
            "shape": list(shape),
            "data_offsets": [at, at + size],
        }
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, (shape, dtype) in tensors.items():
            value = np.ascontiguousarray(read(name))
            assert (value.shape, value.dtype) == (shape, dtype), (name, value.shape, value.dtype)
            file.write(value.reshape(-1).view(np.uint8).data)
