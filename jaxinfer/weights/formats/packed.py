"""A weight as another project stores it, and the tensors of files that it is made of.

A format finds the `Packed` weight behind a name: which grid it is on, and how to read rows of it. It
knows nothing of how weights are fused, cut over shards or held in memory.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from jaxinfer.weights.safetensors_file import FLOATS, NUMBERS, CheckpointError, Entry, read_rows

SCALES = ("F16", "BF16", "F32")


@dataclass(frozen=True)
class Rows:
    """Rows of a weight, n of them.

    values [n, in]: uint8 nibbles ("int4"), int8 or float8_e4m3fn; or float32, the weight itself,
    without a scale. scale [n, groups]: of equal groups of neighbours, the last perhaps smaller.
    zero [n, groups]: the value that means zero (None: nibble 8, else 0).
    """

    values: np.ndarray
    scale: np.ndarray | None = None
    zero: np.ndarray | None = None


@dataclass(frozen=True)
class Packed:
    """One weight [out, in] of a checkpoint, checked but for its numbers.

    kind: "int4", "int8" or "fp8", None where its levels are on no grid of ours. group: how many
    columns share a scale (`in` where all do). zero: whether `Rows` have zero points. scale: their
    type. method: as in `QTensor`. entries: its tensors. read(start, stop): its rows, CheckpointError
    where the numbers cannot be. order(): the columns sorted by group, None where groups are
    neighbours.
    """

    kind: str | None
    group: int
    scale: np.dtype
    entries: tuple[Entry, ...]
    read: Callable[[int, int], Rows]
    zero: bool = False
    method: str = ""
    order: Callable[[], np.ndarray | None] = lambda: None


@dataclass(frozen=True)
class Format:
    """How a checkpoint is quantized. name: in words. find(tensors, name, shape): the weight [out, in]
    behind a name, None where it is stored plainly. ignored: suffixes of tensors that concern
    activations or the cache, which run unquantized here.
    """

    name: str
    find: Callable[["Tensors", str, tuple[int, int]], Packed | None]
    ignored: tuple[str, ...] = ()


@dataclass
class Tensors:
    """The tensors of a checkpoint by name, of which a format takes some. used: their names."""

    found: Mapping[str, Entry]
    used: set[str] = field(default_factory=set)

    def has(self, name: str) -> bool:
        """Whether there is such a tensor."""
        return name in self.found

    def take(self, name: str, shapes: tuple[tuple[int, ...], ...], *dtypes: str) -> Entry:
        """The tensor `name`, which needs one of `shapes` and `dtypes`; CheckpointError otherwise."""
        self.used.add(name)
        wanted = f"{' or '.join(dtypes)} {' or '.join(str(list(shape)) for shape in shapes)}"
        if name not in self.found:
            stem = name.rpartition(".")[0]
            files = {e.path for n, e in self.found.items() if n.startswith(stem)}
            where = min(files, default="the checkpoint")
            raise CheckpointError(
                f"{where}: needs the tensor {name!r}, {wanted}, which is missing; fetch the checkpoint "
                "again, or one that was written whole"
            )
        entry = self.found[name]
        if entry.shape not in shapes or entry.dtype not in dtypes:
            raise wrong(name, entry, wanted, f"{entry.dtype} {list(entry.shape)}")
        return entry


def wrong(name: str, entry: Entry, needs: str, got: str) -> CheckpointError:
    """What is wrong with a tensor."""
    return CheckpointError(
        f"{entry.path}: tensor {name!r} needs {needs}, got {got}; its config.json belongs to another "
        "checkpoint, or the file is damaged: fetch both again"
    )


def whole(entry: Entry) -> np.ndarray:
    """All of a small tensor, in its own type."""
    shape = entry.shape or (1,)
    out = np.empty(shape, NUMBERS[entry.dtype])
    read_rows(Entry(entry.path, entry.dtype, shape, entry.offset, entry.size), 0, shape[0], out)
    return out.reshape(entry.shape)


def rows(entry: Entry, start: int, stop: int, transposed: bool = False) -> np.ndarray:
    """Rows start .. stop of a tensor, or where it is stored transposed its columns [n, rows]."""
    inner = (entry.shape[0],) if transposed else entry.shape[1:]
    out = np.empty((stop - start, *inner), NUMBERS[entry.dtype])
    read_rows(entry, start, stop, out, transposed)
    return out


def scales(name: str, entry: Entry, value: np.ndarray) -> np.ndarray:
    """Scales as they are (8-bit ones in float32), once they are known to be finite."""
    if value.dtype not in [FLOATS[kind] for kind in SCALES]:
        value = value.astype(np.float32)
    if not np.isfinite(value.astype(np.float32)).all():
        raise wrong(name, entry, "finite scales", "infinities or NaN")
    return value


def finite_fp8(name: str, entry: Entry, value: np.ndarray) -> np.ndarray:
    """float8_e4m3fn values, once none of them is NaN."""
    if ((value.view(np.uint8) & 0x7F) == 0x7F).any():
        raise wrong(name, entry, "finite values", "NaN")
    return value


def sorted_columns(name: str, entry: Entry, group: int) -> np.ndarray | None:
    """The columns sorted by the group that a tensor [in] gives each; None where they are.
    CheckpointError: not all groups have `group` columns.
    """
    index = whole(entry)
    stairs = np.arange(len(index)) // group
    if np.array_equal(index, stairs):
        return None
    order = np.argsort(index, kind="stable").astype(np.int32)
    if not np.array_equal(index[order], stairs):
        raise wrong(name, entry, f"{stairs[-1] + 1} groups of {group} columns", "others")
    return order
