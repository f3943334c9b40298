"""Who owns which page of the cache: one acquire, one release, and a count that must always come out
right.

It knows nothing of what the pages hold; the arrays are elsewhere.
"""

from collections.abc import Iterable


class PagePool:
    """Pages 0 .. size - 1, each free or owned once."""

    def __init__(self, size: int):
        if size <= 0:
            raise ValueError(f"a page pool needs at least one page, got {size=}")
        self.size = size
        self._free = list(range(size - 1, -1, -1))
        self._owned: set[int] = set()

    @property
    def free(self) -> int:
        """How many pages nobody owns."""
        return len(self._free)

    def acquire(self, count: int) -> tuple[int, ...]:
        """`count` pages, now owned by the caller.

        MemoryError where fewer are free: nothing is taken.
        """
        if count > len(self._free):
            raise MemoryError(
                f"the page pool needs {count} free pages, has {len(self._free)} of {self.size}"
            )
        pages = tuple(self._free.pop() for _ in range(count))
        self._owned.update(pages)
        self.check()
        return pages

    def release(self, pages: Iterable[int]) -> None:
        """Give pages back; each must be owned."""
        pages = tuple(pages)
        if not self._owned.issuperset(pages) or len(set(pages)) != len(pages):
            raise ValueError(f"only owned pages can be released, each once; got {pages}")
        self._owned.difference_update(pages)
        self._free.extend(reversed(pages))
        self.check()

    def check(self) -> None:
        """Conservation: every page is free or owned, none is both."""
        assert len(self._free) + len(self._owned) == self.size, (
            len(self._free),
            len(self._owned),
            self.size,
        )
