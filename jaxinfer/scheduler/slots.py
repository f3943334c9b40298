"""Which slots of the batch are free, and what their last sequences left in the cache."""

from jaxinfer.scheduler.limits import Limits


class Slots:
    """Slots 0 .. limits.slots - 1."""

    def __init__(self, limits: Limits):
        self._limits = limits
        self._free = list(range(limits.slots - 1, -1, -1))
        self._left_behind: dict[int, tuple[tuple[int, ...], int]] = {}  # slot -> ids, written

    @property
    def free(self) -> int:
        return len(self._free)

    def take(self, prompt: tuple[int, ...], reuse: bool) -> tuple[int, int]:
        """A free slot and how many positions of the prompt's beginning it holds: the most, where
        reuse is wanted.
        """
        best = (self._free[-1], 0)
        for slot in self._free if reuse else ():
            ids, written = self._left_behind.get(slot, ((), 0))
            same, switch = 0, self._limits.rope_switch
            if switch and max(len(prompt), written) > switch:
                continue
            while same < min(len(ids), len(prompt) - 1) and ids[same] == prompt[same]:
                same += 1
            if same > best[1] and written - same <= self._limits.rollback:
                best = (slot, same)
        self._left_behind.pop(best[0], None)
        self._free.remove(best[0])
        return best

    def give(self, slot: int, ids: tuple[int, ...] = (), computed: int = 0) -> None:
        """Free a slot whose first `computed` positions at most were written, as far as known with
        `ids`.
        """
        assert slot not in self._free
        self._free.append(slot)
        if self._limits.reuse and computed:
            self._left_behind[slot] = ids[:computed], computed

    def forget(self) -> None:
        """Whatever slots hold is worth nothing."""
        self._left_behind.clear()
