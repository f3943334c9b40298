"""Who holds which page of the cache: one acquire, one release, and a count that must always come out
right.

A page is free, held by one sequence or several, or kept: nobody holds it, but it has a name, under
which it can be found and held again until a new page is needed; then the one kept longest goes. The
pool knows nothing of what the pages hold; the arrays are elsewhere.
"""

from collections.abc import Iterable, Sequence


class PagePool:
    """Pages 0 .. size - 1, each free, kept, or held."""

    def __init__(self, size: int):
        if size <= 0:
            raise ValueError(f"a page pool needs at least one page, got {size=}")
        self.size = size
        self._free = list(range(size - 1, -1, -1))
        self._kept: dict[int, None] = {}  # in the order in which they were given back
        self._holders: dict[int, int] = {}
        self._named: dict[bytes, int] = {}
        self._names: dict[int, bytes] = {}

    @property
    def free(self) -> int:
        """How many pages nobody holds: those that can be acquired."""
        return len(self._free) + len(self._kept)

    @property
    def kept(self) -> int:
        """How many pages nobody holds, but can still be found."""
        return len(self._kept)

    def find(self, name: bytes) -> int | None:
        """The page of that name, or None."""
        return self._named.get(name)

    def holders(self, page: int) -> int:
        return self._holders.get(page, 0)

    def acquire(self, count: int, found: Sequence[int] = ()) -> tuple[int, ...]:
        """The pages `found` (by name, held by others or kept), then `count` fresh ones, now held by
        the caller too.

        MemoryError where fewer are free: nothing is taken.
        """
        revived = sum(page in self._kept for page in found)
        if count > self.free - revived:
            raise MemoryError(
                f"the page pool needs {count} free pages, has {self.free - revived} of {self.size}"
            )
        for page in found:
            if page not in self._names:
                raise ValueError(f"only pages with a name can be shared; got {page}")
            self._kept.pop(page, None)
            self._holders[page] = self._holders.get(page, 0) + 1
        fresh = tuple(self._fresh() for _ in range(count))
        self._holders.update(dict.fromkeys(fresh, 1))
        self.check()
        return (*found, *fresh)

    def release(self, pages: Iterable[int]) -> None:
        """Give pages back, each held by the caller and named once; the first will be evicted first."""
        pages = tuple(pages)
        if not self._holders.keys() >= set(pages) or len(set(pages)) != len(pages):
            raise ValueError(f"only held pages can be released, each once; got {pages}")
        for page in pages:
            self._holders[page] -= 1
            if self._holders[page]:
                continue
            del self._holders[page]
            if page in self._names:
                self._kept[page] = None
            else:
                self._free.append(page)
        self.check()

    def name(self, page: int, name: bytes) -> None:
        """Make a held page findable; where another page has that name, nothing changes."""
        if page not in self._holders:
            raise ValueError(f"only held pages can be named; got {page}")
        if page not in self._names and name not in self._named:
            self._named[name], self._names[page] = page, name

    def forget(self) -> None:
        """Take all names away: nothing can be found any more."""
        self._free.extend(reversed(self._kept))
        self._kept.clear()
        self._named.clear()
        self._names.clear()
        self.check()

    def check(self) -> None:
        """Conservation: every page is free, kept or held, and none is two of them."""
        counts = len(self._free), len(self._kept), len(self._holders)
        assert sum(counts) == self.size, (counts, self.size)

    def audit(self) -> None:
        """As `check`, page by page."""
        self.check()
        assert {*self._free, *self._kept, *self._holders} == set(range(self.size))
        assert all(count > 0 for count in self._holders.values())
        assert {page: name for name, page in self._named.items()} == self._names
        assert self._kept.keys() <= self._names.keys()
        assert not self._names.keys() & set(self._free)

    def _fresh(self) -> int:
        if self._free:
            return self._free.pop()
        page = next(iter(self._kept))
        del self._kept[page]
        del self._named[self._names.pop(page)]
        return page
