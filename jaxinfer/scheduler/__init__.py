"""Queues -> a small frozen plan for the next step, and the record of what came back.

Host Python: no arrays, no jax, no clock. A sequence that is still reading its prompt gets a chunk
of it, one that has read it gets decode steps; the plan does not care which. Plans may be made one
ahead of what has been recorded: the device stops a sequence by itself, so a plan that comes too
late for it does nothing. Who follows a grammar is planned again only when its tokens have come.

Where pages run out, the sequence that ranks last (lowest priority, then latest) gives way: it goes
back to the queue and keeps its rank and its tokens. What it had written is copied to the host while
that has room, and back when there are pages again; else it reads prompt and tokens again, except
what can still be found by name.
"""

from bisect import insort

from jaxinfer.pages import Allocator, Change, SwapSpace
from jaxinfer.request import Request, Token
from jaxinfer.scheduler.limits import Limits as Limits
from jaxinfer.scheduler.limits import QueueFull as QueueFull
from jaxinfer.scheduler.plan import Chunk as Chunk
from jaxinfer.scheduler.plan import Plan as Plan
from jaxinfer.scheduler.residence import Residence
from jaxinfer.scheduler.sequence import Sequence as Sequence
from jaxinfer.scheduler.slots import Slots


def _rank(sequence: Sequence) -> tuple[int, int]:
    return sequence.rank


class Scheduler:
    """By priority, then first come, first served, over a fixed number of slots.

    allocator: of pages, or None where every slot owns its place in the cache. swap: the host's room
    for those of who gives way, or None.
    """

    def __init__(
        self, limits: Limits, allocator: Allocator | None = None, swap: SwapSpace | None = None
    ):
        self.limits = limits
        self.waiting: list[Sequence] = []
        self.running: dict[int, Sequence] = {}
        self.preemptions = 0
        self._residence = Residence(allocator, swap, rope_switch=limits.rope_switch)
        self._slots = Slots(limits)
        self._arrivals = 0

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.running

    @property
    def held(self) -> bool:
        """Whether somebody who runs can only go on when the tokens under way have come."""
        return any(s.held for s in self.running.values())

    def add(
        self,
        request: Request,
        eos_ids: tuple[int, ...],
        *,
        priority: int = 0,
        salt: str = "",
        index: int = 0,
        seed: int | None = None,
        reuse: bool = False,
    ) -> Sequence:
        """Queue a request; lower priorities go first. reuse: start from what a slot still holds.

        ValueError where it could never fit, QueueFull where too many wait.
        """
        self._check(request)
        self._arrivals += 1
        sequence = Sequence(
            request,
            eos_ids,
            rank=(priority, self._arrivals),
            salt=salt,
            index=index,
            seed=seed,
            reuse=reuse and self.limits.reuse,
        )
        insort(self.waiting, sequence, key=_rank)
        return sequence

    def plan(self) -> Plan | None:
        """What the device should do next, or None while there is nothing to ask of it."""
        for s in tuple(self.running.values()):
            if self._switches(s) and s.settled and s.left > 0:
                self._requeue(s)  # its keys change, and no copy would serve
        admitted, changes, soon = self._admit()
        steps = 1 if soon else self._steps()
        budget, chunks, decode = self.limits.budget, [], []
        for s in sorted(self.running.values(), key=_rank):
            if s.slot < 0:  # has given way to one before it
                continue
            if s.prefilling:
                count, reach = self._part(s, budget)
            else:
                waits = s.held or self._switches(s)
                count, reach = (0 if waits else min(steps, s.left)), 0
            if count <= 0 or not self._grow(s, count, changes):
                continue
            if s.prefilling:
                budget -= count
                tokens = s.prompt[s.computed : s.computed + count]
                final = s.computed + count == len(s.prompt)
                chunks.append(Chunk(s.slot, tokens, s.computed, reach, final))
                s.planned += final
            else:
                decode.append(s.slot)
                s.planned += count
            s.computed += count
            self._residence.name(s)
        if not chunks and not decode:
            return None
        slots = {*decode, *(chunk.slot for chunk in chunks)}
        moves = tuple(self._residence.moves)
        self._residence.moves.clear()
        return Plan(
            moves,
            tuple(s for s in admitted if s.slot >= 0),
            tuple(changes),
            tuple(sorted(chunks, key=lambda chunk: chunk.slot)),
            tuple(sorted(decode)),
            steps,
            max(self.running[slot].computed for slot in slots),
        )

    def record(self, sequence: Sequence, token_id: int, logprob: float | None, top) -> Token:
        """One sampled token of a sequence -> the event to show; the device stopped by the same
        rule.
        """
        assert not sequence.finished
        reason, error = sequence.take(token_id)
        if reason is not None:
            self.finish(sequence)
        elif sequence.slot >= 0:
            self._residence.name(sequence)
        return Token(
            request_id=sequence.request.id,
            token_id=token_id,
            logprob=logprob,
            top_logprobs=top,
            finish_reason=reason,
            index=sequence.index,
            error=error,
        )

    def finish(self, sequence: Sequence) -> None:
        """Take a sequence out, whatever it was doing."""
        if sequence.finished:
            return
        if sequence.slot < 0:
            self.waiting.remove(sequence)
            self._residence.drop(sequence)
        else:
            self._leave(sequence)
        sequence.finished = True

    def restart(self) -> None:
        """Forget what the cache holds: who runs reads everything again, nobody finds anything."""
        for s in tuple(self.running.values()):
            self._requeue(s)
        for s in self.waiting:
            self._residence.drop(s)
        self._slots.forget()
        self._residence.forget()

    def fail(self, sequences: tuple[Sequence, ...]) -> tuple[Sequence, ...]:
        """After a step that failed: who was a suspect already is out, and returned. The others in it
        become suspects, each of whom runs alone until a step with it goes well; everybody reads
        everything again, and nobody waits for tokens under way.
        """
        lost = tuple(s for s in sequences if s.suspect)
        for s in sequences:
            s.suspect = True
        self.lose(lost)
        return lost

    def lose(self, sequences: tuple[Sequence, ...]) -> None:
        """Take sequences out whose tokens under way will not come, nor anybody else's."""
        for s in sequences:
            self.finish(s)
        for s in (*self.running.values(), *self.waiting):
            s.planned = len(s.tokens)
        self.restart()

    def check(self) -> None:
        """Conservation: every slot and every page is somebody's or free."""
        assert len(self.running) + self._slots.free == self.limits.slots
        assert all(s.slot == slot and not s.finished for slot, s in self.running.items())
        assert all(s.slot < 0 and s.holding is None for s in self.waiting)
        assert [s.rank for s in self.waiting] == sorted(s.rank for s in self.waiting)
        self._residence.check(tuple(self.running.values()), self.waiting)

    def _check(self, request: Request) -> None:
        prompt, new = len(request.prompt_token_ids), request.params.max_new_tokens
        most, remedy = self.limits.max_length, "raise max_length"
        if self._residence.most < most:
            most, remedy = self._residence.most, "raise num_pages"
        if not self.limits.endless and prompt + new > most:
            raise ValueError(
                f"prompt and max_new_tokens need to fit {most} positions, got {prompt} + {new}; "
                f"shorten one or {remedy}"
            )
        if self.limits.queue is not None and len(self.waiting) >= self.limits.queue:
            raise QueueFull(
                f"the queue holds {self.limits.queue} requests and is full; "
                "wait for some to finish, or raise the limit `queue`"
            )

    def _admit(self) -> tuple[list[Sequence], list[tuple[int, Change]], bool]:
        """Who enters a slot, in the order of ranks. Who waits for a token under way, or for a page
        that another is about to write, has its slot kept free; who may have made a step fail enters
        alone. Last: whether somebody who still waits may enter before anybody finishes.
        """
        admitted, changes, at, kept, alone = [], [], 0, 0, False
        while at < len(self.waiting) and self._slots.free > kept:
            s = self.waiting[at]
            alone = s.suspect or any(r.suspect for r in self.running.values())
            if self.running and alone:
                break
            ready, blocks = s.settled, 0
            if ready:
                s.prompt = s.known
                blocks = self._residence.begins(s, self.running.values())
                ready = blocks >= 0
            if not ready:
                at, kept = at + 1, kept + 1
                continue
            if self.running and not self._residence.fits(s, blocks, self.running.values()):
                break
            del self.waiting[at]
            changes += self._enter(s, blocks)
            admitted.append(s)
        return admitted, changes, kept > 0 or alone

    def _enter(self, s: Sequence, blocks: int) -> list[tuple[int, Change]]:
        s.visits += 1
        s.slot, s.reused = self._slots.take(s.prompt, s.reuse)
        changes = self._residence.enter(s, blocks)
        s.computed = s.reused
        self.running[s.slot] = s
        return [(s.slot, change) for change in changes]

    def _grow(self, s: Sequence, count: int, changes: list[tuple[int, Change]]) -> bool:
        """Give s the pages of its next `count` positions; who ranks last gives way where they are
        short. False where that is s itself.
        """
        while True:
            found = self._residence.grow(s, count)
            if found is not None:
                changes += [(s.slot, change) for change in found]
                return True
            last = max(self.running.values(), key=_rank)
            self.preemptions += 1
            self._residence.park(last)
            self._requeue(last)
            if last is s:
                return False

    def _requeue(self, s: Sequence) -> None:
        """Take a sequence out of its slot; it reads again what nobody keeps when it comes back."""
        self._leave(s)
        s.slot, s.computed, s.reused = -1, 0, 0
        s.names.clear()
        insort(self.waiting, s, key=_rank)

    def _leave(self, s: Sequence) -> None:
        """The one path that gives back."""
        del self.running[s.slot]
        self._slots.give(s.slot, s.known[: s.written] if self.limits.reuse else (), s.computed)
        self._residence.leave(s)

    def _part(self, s: Sequence, budget: int) -> tuple[int, int]:
        """How many of its prompt's tokens s reads next, and the length that its rope looks at."""
        left = len(s.prompt) - s.computed
        if not self.limits.rope_follows:
            return min(self.limits.chunk, left, budget), len(s.prompt)
        first = len(s.request.prompt_token_ids)  # what follows was decoded, each at its own length
        if s.computed < first:
            return min(self.limits.chunk, first - s.computed, budget), first
        return min(1, budget), s.computed + 1

    def _switches(self, s: Sequence) -> bool:
        """Whether the next token would cross the length at which the rope changes: then everything
        is read again.
        """
        return not s.prefilling and s.computed == self.limits.rope_switch > 0

    def _steps(self) -> int:
        """How many tokens to decode at once: several only where nobody reads a prompt or follows a
        grammar, and there are pages for all of them. While others wait, until the first of those
        who run is at its end, so that its slot is soon theirs.
        """
        running = self.running.values()
        if any(s.prefilling or s.matcher is not None for s in running):
            return 1
        decoding = [s for s in running if s.left > 0]
        lefts = [s.left for s in running]
        left = (min if self.waiting else max)(lefts, default=1)
        switch = self.limits.rope_switch
        until = [switch - s.computed for s in decoding if s.computed < switch]
        steps = max(1, min(self.limits.decode_steps, left, *until))
        while steps > 1 and not self._residence.enough(decoding, steps):
            steps //= 2
        return steps
