"""Which pages sequences have, those to come included; nothing to do where slots own their places.

It asks the allocator on behalf of sequences, names what they have filled, and decides what becomes
of the pages of one that gives way: to the host while there is room, else forgotten.
"""

from collections.abc import Iterable

from jaxinfer.pages import Allocator, Change, Move, SwapSpace, names
from jaxinfer.scheduler.sequence import Sequence


class Residence:
    """rope_switch: see `Limits`. swap: room on the host, or None.

    moves: of pages to and from the host, to be made in this order before the next step.
    """

    def __init__(
        self, allocator: Allocator | None, swap: SwapSpace | None = None, *, rope_switch: int = 0
    ):
        self._allocator, self._swap, self._rope_switch = allocator, swap, rope_switch
        self.moves: list[Move] = []

    @property
    def most(self) -> int:
        """The most positions that one sequence alone can have."""
        return 2**31 if self._allocator is None else self._allocator.most()

    def begins(self, s: Sequence, running: Iterable[Sequence]) -> int:
        """How many blocks s can begin with; -1 where it should wait for the next one."""
        allocator = self._allocator
        if allocator is None or not allocator.share:
            return 0
        self._know(s)
        most = (len(s.prompt) - 1) // allocator.page_size  # one token at least is to be read
        blocks = allocator.hit(s.names[:most])
        if s.parked is not None:
            return blocks
        for other in running if blocks < most else ():
            # who reads the same beginning further on, and has that block still before it
            assert other.holding is not None
            if other.rank < s.rank and other.holding.named <= blocks < len(other.names):
                unread = blocks < len(other.prompt) // allocator.page_size
                if unread and other.names[blocks] == s.names[blocks]:
                    return -1
        return blocks

    def fits(self, s: Sequence, blocks: int, running: Iterable[Sequence]) -> bool:
        """Whether s can read its whole prompt, and everybody decode into one more page."""
        allocator = self._allocator
        if allocator is None:
            return True
        promised = sum(
            allocator.lacking(other.holding, len(other.prompt) + allocator.page_size)
            for other in running
            if other.holding is not None
        )
        if self._returns(s, blocks):
            assert s.parked is not None
            return allocator.room_again(s.names, s.parked, len(s.prompt) + 1, promised)
        return allocator.room(s.names, blocks, len(s.prompt) + 1, promised)

    def enter(self, s: Sequence, blocks: int) -> list[Change]:
        """Give s what it had, or the first blocks that were found."""
        if self._allocator is None:
            return []
        if self._returns(s, blocks):
            assert s.parked is not None
            assert self._swap is not None
            s.holding, changes, into = self._allocator.enter_again(s.names, s.parked)
            s.reused = s.parked.positions
            self.moves.append(self._swap.fetch(s.parked, into))
            s.parked = None
        else:
            self.drop(s)
            s.holding, changes = self._allocator.enter(s.names, blocks)
            s.reused = blocks * self._allocator.page_size
        return changes

    def grow(self, s: Sequence, count: int) -> list[Change] | None:
        """Give s the pages of its next `count` positions; None where they are short."""
        if self._allocator is None:
            return []
        assert s.holding is not None
        return self._allocator.extend(s.holding, s.computed, s.computed + count)

    def enough(self, sequences: Iterable[Sequence], steps: int) -> bool:
        """Whether all can decode so far without anybody giving way."""
        if self._allocator is None:
            return True
        ends = [(s.holding, s.computed + min(steps, s.left)) for s in sequences]
        lacking = sum(self._allocator.lacking(h, end) for h, end in ends if h is not None)
        return self._allocator.enough(lacking)

    def name(self, s: Sequence) -> None:
        """Let others find the pages that s has filled."""
        if self._allocator is None or not self._allocator.share:
            return
        assert s.holding is not None
        blocks = s.written // self._allocator.page_size
        if blocks > s.holding.named:
            self._know(s)
            self._allocator.name(s.holding, s.names, blocks)

    def park(self, s: Sequence) -> None:
        """Copy what s has to the host, where there is room, before it leaves."""
        if self._swap is None or self._allocator is None:
            return
        if 0 < self._rope_switch == s.computed:
            return  # its keys change before it goes on
        assert s.holding is not None
        assert s.parked is None
        move = self._swap.park(s.holding, s.computed, self._allocator.page_size)
        if move is not None:
            s.parked = move.parked
            self.moves.append(move)

    def drop(self, s: Sequence) -> None:
        """Forget what s has on the host."""
        if s.parked is not None and self._swap is not None:
            self._swap.drop(s.parked)
        s.parked = None

    def leave(self, s: Sequence) -> None:
        """The one path that gives pages back."""
        if self._allocator is not None:
            assert s.holding is not None
            self._allocator.leave(s.holding)
            s.holding = None

    def forget(self) -> None:
        """Nothing written so far is worth anything, on the device or the host."""
        self.moves.clear()
        if self._allocator is not None:
            self._allocator.forget()

    def check(self, running: Iterable[Sequence], waiting: Iterable[Sequence]) -> None:
        """Conservation, of pages and of room on the host."""
        assert all(s.parked is None for s in running)
        if self._allocator is not None:
            self._allocator.check([s.holding for s in running if s.holding is not None])
        if self._swap is not None:
            sizes = [s.parked.size for s in waiting if s.parked is not None]
            assert sum(sizes) == self._swap.used, (sizes, self._swap.used)

    def _returns(self, s: Sequence, blocks: int) -> bool:
        """Whether the host knows more of s than the cache."""
        if s.parked is None or self._allocator is None:
            return False
        return s.parked.positions > blocks * self._allocator.page_size

    def _know(self, s: Sequence) -> None:
        """Extend the names of the pages of a sequence to what is known of it."""
        assert self._allocator is not None
        far = 0 < self._rope_switch < len(s.prompt)
        size = self._allocator.page_size
        names.extend(s.names, names.root(s.salt, far), s.since(len(s.names) * size), size)
