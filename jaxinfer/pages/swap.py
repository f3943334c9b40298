"""Room in the host's memory for pages of sequences that gave way: who may take how much of it.

As vLLM's swapping (Kwon et al. 2023, section 4.5): what a sequence has computed goes to the host
when its pages are needed, and comes back when there are pages again. What the pages hold is the
business of whoever copies them; here it is a thing without form.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxinfer.pages.holding import Holding, Parked


@dataclass(frozen=True)
class Move:
    """Pages to copy, per group: out of the cache, or (-1: not this one) back into it."""

    parked: Parked
    pages: tuple[tuple[int, ...], ...]
    out: bool


class SwapSpace:
    """size: bytes that copies may take together. page_bytes: of a page of each group."""

    def __init__(self, size: int, page_bytes: Sequence[int]):
        if size < 0:
            raise ValueError(f"a swap space needs a size of at least 0 bytes, got {size}")
        self.size, self._page_bytes = size, tuple(page_bytes)
        self.used = self.outs = self.ins = self.bytes_out = self.bytes_in = 0

    def park(self, holding: Holding, positions: int, page_size: int) -> Move | None:
        """Take room for a sequence's first `positions`; None where there is too little."""
        blocks = -(-positions // page_size)
        pages = tuple(
            tuple(held[: max(0, blocks - first)])
            for first, held in zip(holding.first, holding.pages, strict=True)
        )
        counts = tuple(map(len, pages))
        size = sum(n * each for n, each in zip(counts, self._page_bytes, strict=True))
        if not size or self.used + size > self.size:
            return None
        self.used += size
        self.outs, self.bytes_out = self.outs + 1, self.bytes_out + size
        return Move(Parked(tuple(holding.first), counts, positions, size), pages, True)

    def fetch(self, parked: Parked, pages: tuple[tuple[int, ...], ...]) -> Move:
        """Bring a copy back into those pages, and give its room back."""
        wanted = (sum(page >= 0 for page in group) for group in pages)
        self.ins += 1
        self.bytes_in += sum(n * each for n, each in zip(wanted, self._page_bytes, strict=True))
        self.drop(parked)
        return Move(parked, pages, False)

    def drop(self, parked: Parked) -> None:
        """Give a copy's room back."""
        self.used -= parked.size
        assert 0 <= self.used <= self.size, (self.used, self.size)
