"""What a sequence has in the cache, or had there."""

from dataclasses import dataclass
from typing import Any


@dataclass
class Holding:
    """What one sequence holds: per group its first block and the pages from there on; end: blocks
    that have or had a page; named: blocks whose names are in the pools.
    """

    first: list[int]
    pages: list[list[int]]
    end: int = 0
    named: int = 0


@dataclass(eq=False)
class Parked:
    """What a sequence had in the cache, on the host: per group its first block and how many follow.

    positions: computed. size: bytes. content: the pages' copies, from when they are made.
    """

    first: tuple[int, ...]
    counts: tuple[int, ...]
    positions: int
    size: int
    content: Any = None
