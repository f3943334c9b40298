"""Pages of the cache -> the host's memory, and back, in pieces of a few sizes."""

from collections.abc import Iterator, Sequence

import jax
import numpy as np

from jaxinfer.step import Programs, State

PIECES = (8, 64)  # how many pages of a group a program copies
Content = list[list]  # per group its pieces: a `Pages` of arrays [pages, ...] for each layer


def copy_out(programs: Programs, state: State, pages: Sequence[Sequence[int]]) -> Content:
    """What pages (per group) hold. It waits for what is under way, so that no more than one piece
    is ever beside the cache in the device's memory.
    """
    return [
        [_piece(programs, state, part, group) for part in _parts(ids)]
        for group, ids in enumerate(pages)
    ]


def copy_in(
    programs: Programs, state: State, pages: Sequence[Sequence[int]], content: Content
) -> State:
    """The state with what `copy_out` gave in other pages; -1: not that one."""
    for group, (ids, pieces) in enumerate(zip(pages, content, strict=True)):
        for part, piece in zip(_parts(ids), pieces, strict=True):
            if max(part) >= 0:
                state = _put(programs, state, part, piece, group)
    return state


def nothing(programs: Programs, state: State, group: int, size: int) -> State:
    """Run the programs of one of PIECES, and change nothing."""
    piece = _piece(programs, state, (0,) * size, group)
    return _put(programs, state, (-1,) * size, piece, group)


def _piece(programs: Programs, state: State, ids: Sequence[int], group: int):
    padded = np.zeros((_size(len(ids)),), np.int32)
    padded[: len(ids)] = ids
    piece = jax.device_get(programs.copy_out(state, padded, group=group))
    return jax.tree.map(lambda x: np.array(x[: len(ids)]), piece)


def _put(programs: Programs, state: State, ids: Sequence[int], piece, group: int) -> State:
    to = np.full((_size(len(ids)),), -1, np.int32)
    to[: len(ids)] = ids
    to[to < 0] = np.iinfo(np.int32).max  # past the last page: dropped

    def padded(x):
        whole = np.zeros((len(to), *x.shape[1:]), x.dtype)
        whole[: len(x)] = x
        return whole

    return programs.copy_in(state, to, jax.tree.map(padded, piece), group=group)


def _parts(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    return (ids[begin : begin + PIECES[-1]] for begin in range(0, len(ids), PIECES[-1]))


def _size(count: int) -> int:
    return min(size for size in PIECES if size >= count)
