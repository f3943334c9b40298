"""The pages of a sequence in every group of layers, as it grows.

Positions fall into blocks of a page's size; block b of a group lies in column b % ring of the
sequence's page table. A group that looks back over everything holds all blocks; one with a window
gives a block back as soon as no later token sees it, so that its ring of columns meets fresh pages
when it wraps and a page's content, once written, stays what its name says.

A prompt may begin with blocks found by name only where every group has what later tokens look back
on: a full group all of them, a windowed group those that its window still reaches. Where a group
lacks some, the prompt begins at the longest length that all can serve.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxinfer.pages.holding import Holding, Parked
from jaxinfer.pages.pool import PagePool

Change = tuple[int, int, int]  # group, column, page


@dataclass(frozen=True)
class Group:
    """pages: of the pool. ring: columns of a page table. window: positions that a token looks back
    on, itself included, or None (all). fixed: a ring that wraps in place (attention sinks), whose
    pages cannot be shared.
    """

    pages: int
    ring: int
    window: int | None = None
    fixed: bool = False

    def first_needed(self, position: int, page_size: int) -> int:
        """The first block that a token at `position` looks back on."""
        if self.window is None or self.fixed:
            return 0
        return max(0, position - self.window + 1) // page_size


class Allocator:
    """One pool a group. share: whether pages can be found by name."""

    def __init__(self, page_size: int, groups: Sequence[Group], *, share: bool = True):
        if page_size < 1:
            raise ValueError(f"page_size needs to be at least 1, got {page_size}")
        self.page_size, self.groups = page_size, tuple(groups)
        self.share = share and not any(group.fixed for group in groups)
        self.pools = tuple(PagePool(group.pages) for group in groups)

    def most(self) -> int:
        """The most positions that one sequence alone can have; 2**31 where its rings fit."""
        short = [group.pages for group in self.groups if group.pages < group.ring]
        return min(short) * self.page_size if short else 2**31

    def hit(self, names: Sequence[bytes]) -> int:
        """How many blocks from the start of `names` a sequence can begin with."""
        if not self.share:
            return 0
        best = {length: 0 for length in range(len(names) + 1)}  # length -> groups that can serve it
        for group, pool in zip(self.groups, self.pools, strict=True):
            since = 0  # the blocks since .. length - 1 are all there
            for length in range(len(names) + 1):
                if length and pool.find(names[length - 1]) is None:
                    since = length
                if since <= group.first_needed(length * self.page_size, self.page_size):
                    best[length] += 1
                elif group.window is None:
                    break
        return max(length for length, count in best.items() if count == len(self.groups))

    def room(self, names: Sequence[bytes], blocks: int, positions: int, others: int) -> bool:
        """Whether `positions` can be reached from the first `blocks` of names, leaving `others`
        pages to others in each full group.
        """
        for group, pool in zip(self.groups, self.pools, strict=True):
            wanted = -(-positions // self.page_size) - blocks
            if group.window is not None:
                wanted = min(wanted, group.ring)
            first = group.first_needed(blocks * self.page_size, self.page_size)
            pages = [pool.find(name) for name in names[first:blocks]]
            revived = sum(page is not None and not pool.holders(page) for page in pages)
            if wanted + revived + (others if group.window is None else 0) > pool.free:
                return False
        return True

    def enter(self, names: Sequence[bytes], blocks: int) -> tuple[Holding, list[Change]]:
        """Hold the first `blocks` of names, as found by `hit`."""
        holding = Holding([], [], blocks, blocks)
        changes = []
        for i, (group, pool) in enumerate(zip(self.groups, self.pools, strict=True)):
            first = group.first_needed(blocks * self.page_size, self.page_size)
            found = [pool.find(name) for name in names[first:blocks]]
            pages = pool.acquire(0, [page for page in found if page is not None])
            assert len(pages) == blocks - first
            holding.first.append(first)
            holding.pages.append(list(pages))
            changes += [(i, (first + j) % group.ring, page) for j, page in enumerate(pages)]
        return holding, changes

    def room_again(
        self, names: Sequence[bytes], parked: Parked, positions: int, others: int
    ) -> bool:
        """As `room`, for a sequence whose beginning comes back as `parked`."""
        end = -(-parked.positions // self.page_size)
        more = max(0, -(-positions // self.page_size) - end)
        for i, (group, pool) in enumerate(zip(self.groups, self.pools, strict=True)):
            pages = self._found(i, names, parked)
            taken = sum(page is None or not pool.holders(page) for page in pages)
            taken += min(more, max(0, group.ring - len(pages))) if group.fixed else more
            if taken + (others if group.window is None else 0) > pool.free:
                return False
        return True

    def enter_again(
        self, names: Sequence[bytes], parked: Parked
    ) -> tuple[Holding, list[Change], tuple[tuple[int, ...], ...]]:
        """Hold the pages of `parked`, those found by name and fresh ones. Last: per group the pages
        to copy into, -1 where one was found.
        """
        end = -(-parked.positions // self.page_size)
        holding, changes, into = Holding(list(parked.first), [], end), [], []
        for i, (group, pool) in enumerate(zip(self.groups, self.pools, strict=True)):
            found = self._found(i, names, parked)
            kept = [page for page in found if page is not None]
            fresh = iter(pool.acquire(len(found) - len(kept), kept)[len(kept) :])
            to = [next(fresh) if page is None else -1 for page in found]
            pages = [new if old is None else old for old, new in zip(found, to, strict=True)]
            holding.pages.append(pages)
            into.append(tuple(to))
            first = parked.first[i]
            changes += [(i, (first + j) % group.ring, page) for j, page in enumerate(pages)]
        return holding, changes, tuple(into)

    def _found(self, i: int, names: Sequence[bytes], parked: Parked) -> list[int | None]:
        """Of group i's pages of `parked`, those that are still to be found: only whole ones, which
        nobody writes into.
        """
        first = parked.first[i]
        whole = parked.positions // self.page_size if self.share else 0
        blocks = range(first, first + parked.counts[i])
        return [self.pools[i].find(names[b]) if b < whole else None for b in blocks]

    def lacking(self, holding: Holding, end: int) -> int:
        """How many pages a sequence lacks in order to reach position `end`: of the group that lacks
        most.
        """
        return max(self._counts(holding, -(-end // self.page_size)))

    def _counts(self, holding: Holding, blocks: int) -> list[int]:
        """Per group, how many pages are missing to the first `blocks` blocks."""
        lasts = [min(blocks, group.ring) if group.fixed else blocks for group in self.groups]
        ends = [first + len(p) for first, p in zip(holding.first, holding.pages, strict=True)]
        return [max(0, last - end) for last, end in zip(lasts, ends, strict=True)]

    def enough(self, count: int) -> bool:
        """Whether every group has `count` pages that nobody holds."""
        return all(pool.free >= count for pool in self.pools)

    def extend(self, holding: Holding, begin: int, end: int) -> list[Change] | None:
        """Pages for positions begin .. end - 1, which come next; when new ones are needed, blocks
        that none of these sees go back. None (and none taken) where a group has too few.
        """
        if end <= holding.end * self.page_size:
            return []
        for i, (group, pool) in enumerate(zip(self.groups, self.pools, strict=True)):
            done = min(group.first_needed(begin, self.page_size), holding.end) - holding.first[i]
            if done > 0:
                pool.release(reversed(holding.pages[i][:done]))
                del holding.pages[i][:done]
                holding.first[i] += done
        blocks = max(holding.end, -(-end // self.page_size))
        counts = self._counts(holding, blocks)
        if any(count > pool.free for count, pool in zip(counts, self.pools, strict=True)):
            return None
        changes = []
        for i, (group, pool) in enumerate(zip(self.groups, self.pools, strict=True)):
            at = holding.first[i] + len(holding.pages[i])
            pages = pool.acquire(counts[i])
            holding.pages[i] += pages
            assert len(holding.pages[i]) <= group.ring, (len(holding.pages[i]), group)
            changes += [(i, (at + j) % group.ring, page) for j, page in enumerate(pages)]
        holding.end = blocks
        return changes

    def name(self, holding: Holding, names: Sequence[bytes], blocks: int) -> None:
        """Make a sequence's first `blocks` findable: they are written, or will be before anything
        that is planned from now on.
        """
        for block in range(holding.named, blocks):
            for i, pool in enumerate(self.pools):
                at = block - holding.first[i]
                if 0 <= at < len(holding.pages[i]):
                    pool.name(holding.pages[i][at], names[block])
        holding.named = max(holding.named, blocks)

    def leave(self, holding: Holding) -> None:
        """Give everything back; a prompt's beginning stays findable longer than its end."""
        for pool, pages in zip(self.pools, holding.pages, strict=True):
            pool.release(reversed(pages))
            pages.clear()

    def forget(self) -> None:
        """Nothing written so far can be found any more."""
        for pool in self.pools:
            pool.forget()

    def check(self, holdings: Sequence[Holding]) -> None:
        """Conservation, page by page: the pools' counts are those of the sequences."""
        for i, pool in enumerate(self.pools):
            pool.audit()
            held: dict[int, int] = {}
            for holding in holdings:
                for page in holding.pages[i]:
                    held[page] = held.get(page, 0) + 1
            assert all(pool.holders(page) == held.get(page, 0) for page in range(pool.size))
