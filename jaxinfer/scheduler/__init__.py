"""Queues -> a small frozen plan for the next step, and the record of what came back.

Host Python: no arrays, no jax, no clock. A sequence that is still reading its prompt gets a chunk
of it, one that has read it gets decode steps; the plan does not care which. Plans may be made one
ahead of what has been recorded: the device stops a sequence by itself, so a plan that comes too
late for it does nothing.
"""

from bisect import insort
from dataclasses import dataclass, field

from jaxinfer.pages import PagePool
from jaxinfer.request import FinishReason, Request, Token


@dataclass(frozen=True)
class Limits:
    """slots: sequences at once. max_length: positions of one sequence. chunk: prompt tokens of one
    sequence in one step; budget: of all. decode_steps: tokens decoded before the host looks again.
    endless: the ring may wrap, so that max_length does not bound a sequence. rope_switch: the
    length at which a sequence's rope changes (longrope), or 0.
    reuse: a slot remembers what its last sequence left in the cache, and a prompt that asks for it
    and begins the same starts there; at most `rollback` positions may be forgotten again (what a
    wrapped ring still holds beyond its window).
    queue: how many sequences may wait; None: any number.
    """

    slots: int
    max_length: int
    chunk: int = 512
    budget: int = 2048
    decode_steps: int = 8
    endless: bool = False
    rope_switch: int = 0
    reuse: bool = False
    rollback: int = 0
    queue: int | None = None

    def __post_init__(self):
        for name in ("slots", "max_length", "chunk", "budget", "decode_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} needs to be at least 1, got {getattr(self, name)}")
        if self.queue is not None and self.queue < 1:
            raise ValueError(f"queue needs to be at least 1 or None, got {self.queue}")


class QueueFull(RuntimeError):
    """As many requests wait as may; come again later."""


@dataclass
class Sequence:
    """One request on its way. prompt: what is to be read; it grows by the tokens received when a
    sequence must be read again. rank: priority, then arrival; the lowest goes first. salt: whose
    pages it may share. index: which of the n continuations. reused: positions found in the slot.
    computed: positions planned
    into the cache. planned, tokens: tokens asked for, received.
    """

    request: Request
    eos_ids: tuple[int, ...]
    rank: tuple[int, int] = (0, 0)
    salt: str = ""
    index: int = 0
    reuse: bool = False
    slot: int = -1
    reused: int = 0
    pages: tuple[tuple[int, ...], ...] = ()
    prompt: tuple[int, ...] = ()
    computed: int = 0
    planned: int = 0
    tokens: list[int] = field(default_factory=list)
    finished: bool = False

    @property
    def stop_ids(self) -> frozenset[int]:
        params = self.request.params
        return frozenset(params.stop_token_ids) | (
            frozenset() if params.ignore_eos else frozenset(self.eos_ids)
        )

    @property
    def prefilling(self) -> bool:
        return self.computed < len(self.prompt)


@dataclass(frozen=True)
class Chunk:
    """Prompt tokens of the sequence in `slot`, from position `start` on.

    final: a token is sampled after them.
    """

    slot: int
    tokens: tuple[int, ...]
    start: int
    reach: int
    final: bool


@dataclass(frozen=True)
class Plan:
    """admitted: sequences that enter their slots before this step. chunks: prompt parts. decode:
    slots that decode in this step; steps: how many tokens each (1 beside chunks). longest: no
    context grows beyond it in this step.
    """

    admitted: tuple[Sequence, ...]
    chunks: tuple[Chunk, ...]
    decode: tuple[int, ...]
    steps: int
    longest: int


class Scheduler:
    """By priority, then first come, first served, over a fixed number of slots."""

    def __init__(
        self,
        limits: Limits,
        pools: tuple[PagePool, ...] = (),
        pages_per_slot: tuple[tuple[int, int], ...] = (),
    ):
        self.limits = limits
        self.waiting: list[Sequence] = []
        self._arrivals = 0
        self.running: dict[int, Sequence] = {}
        self._pools = pools
        self._pages_per_slot = pages_per_slot
        self._free_slots = list(range(limits.slots - 1, -1, -1))
        self._left_behind: dict[
            int, tuple[tuple[int, ...], int]
        ] = {}  # slot -> (ids, positions written)

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.running

    def add(
        self,
        request: Request,
        eos_ids: tuple[int, ...],
        *,
        priority: int = 0,
        salt: str = "",
        index: int = 0,
        reuse: bool = False,
    ) -> Sequence:
        """Queue a request; lower priorities go first. reuse: start from what a slot still holds.

        ValueError where it could never fit, QueueFull where too many wait.
        """
        total = len(request.prompt_token_ids) + request.params.max_new_tokens
        if not self.limits.endless and total > self.limits.max_length:
            raise ValueError(
                f"prompt and max_new_tokens need to fit {self.limits.max_length} positions, got "
                f"{len(request.prompt_token_ids)} + {request.params.max_new_tokens}; shorten one or raise max_length"
            )
        if self.limits.queue is not None and len(self.waiting) >= self.limits.queue:
            raise QueueFull(
                f"the queue holds {self.limits.queue} requests and is full; "
                "wait for some to finish, or raise the limit `queue`"
            )
        self._arrivals += 1
        sequence = Sequence(
            request,
            eos_ids,
            rank=(priority, self._arrivals),
            salt=salt,
            index=index,
            reuse=reuse and self.limits.reuse,
            prompt=request.prompt_token_ids,
        )
        insort(self.waiting, sequence, key=lambda s: s.rank)
        return sequence

    def plan(self) -> Plan | None:
        """What the device should do next, or None while there is nothing to ask of it."""
        admitted = self._admit()
        for s in self.running.values():
            if self._switches(s) and s.planned == len(s.tokens) and self._left(s) > 0:
                self._rewind(s)
        chunks, budget = [], self.limits.budget
        for slot, s in sorted(self.running.items()):
            count = min(self.limits.chunk, len(s.prompt) - s.computed, budget)
            if count <= 0:
                continue
            tokens = s.prompt[s.computed : s.computed + count]
            final = s.computed + count == len(s.prompt)
            chunks.append(Chunk(slot, tokens, s.computed, len(s.prompt), final))
            budget -= count
        decode = tuple(slot for slot, s in sorted(self.running.items()) if self._decodes(s))
        if not chunks and not decode:
            assert not admitted
            return None
        steps = 1 if chunks else self._steps(decode)
        for chunk in chunks:
            s = self.running[chunk.slot]
            s.computed += len(chunk.tokens)
            s.planned += chunk.final
        for slot in decode:
            s = self.running[slot]
            taken = min(steps, self._left(s))
            s.computed += taken
            s.planned += taken
        longest = max(self.running[slot].computed for slot in {*decode, *(c.slot for c in chunks)})
        return Plan(admitted, tuple(chunks), decode, steps, longest)

    def record(self, sequence: Sequence, token_id: int, logprob: float | None, top) -> Token:
        """One sampled token of a sequence -> the event to show; the device stopped by the same
        rule.
        """
        assert not sequence.finished
        sequence.tokens.append(token_id)
        params = sequence.request.params
        reason = None
        if token_id in sequence.stop_ids:
            reason = FinishReason.STOP
        elif len(sequence.tokens) >= params.max_new_tokens:
            reason = FinishReason.LENGTH
        if reason is not None:
            self.finish(sequence)
        return Token(
            request_id=sequence.request.id,
            token_id=token_id,
            logprob=logprob,
            top_logprobs=top,
            finish_reason=reason,
            index=sequence.index,
        )

    def finish(self, sequence: Sequence) -> None:
        """Take a sequence out, whatever it was doing: the one path that releases."""
        if sequence.finished:
            return
        sequence.finished = True
        if sequence.slot < 0:
            self.waiting.remove(sequence)
            return
        del self.running[sequence.slot]
        self._free_slots.append(sequence.slot)
        if self.limits.reuse:
            known = sequence.request.prompt_token_ids + tuple(sequence.tokens[:-1])
            self._left_behind[sequence.slot] = known[: sequence.computed], sequence.computed
        for pool, pages in zip(self._pools, sequence.pages, strict=True):
            pool.release(pages)

    def _admit(self) -> tuple[Sequence, ...]:
        admitted = []
        while self.waiting and self._free_slots:
            needs = [self._needs(i, self.waiting[0]) for i in range(len(self._pools))]
            if any(pool.free < need for pool, need in zip(self._pools, needs, strict=True)):
                break
            s = self.waiting.pop(0)
            s.slot, s.reused = self._choose_slot(s)
            s.computed = s.reused
            self._free_slots.remove(s.slot)
            s.pages = tuple(pool.acquire(n) for pool, n in zip(self._pools, needs, strict=True))
            self.running[s.slot] = s
            admitted.append(s)
        return tuple(admitted)

    def _choose_slot(self, s: Sequence) -> tuple[int, int]:
        """A free slot and how many positions of the prompt's beginning it holds: the most, where
        reuse is wanted.
        """
        best, prompt = (self._free_slots[-1], 0), s.prompt
        for slot in self._free_slots if s.reuse else ():
            ids, written = self._left_behind.get(slot, ((), 0))
            same, switch = 0, self.limits.rope_switch
            if switch and max(len(prompt), written) > switch:
                continue
            while same < min(len(ids), len(prompt) - 1) and ids[same] == prompt[same]:
                same += 1
            if same > best[1] and written - same <= self.limits.rollback:
                best = (slot, same)
        self._left_behind.pop(best[0], None)
        return best

    def _needs(self, group: int, s: Sequence) -> int:
        most, size = self._pages_per_slot[group]
        total = len(s.request.prompt_token_ids) + s.request.params.max_new_tokens
        return min(most, -(-total // size))

    def _left(self, s: Sequence) -> int:
        return s.request.params.max_new_tokens - s.planned

    def _decodes(self, s: Sequence) -> bool:
        return not s.prefilling and self._left(s) > 0 and not self._switches(s)

    def _switches(self, s: Sequence) -> bool:
        """Whether the next token would cross the length at which the rope changes: then everything
        is read again.
        """
        return s.computed == self.limits.rope_switch > 0

    @staticmethod
    def _rewind(s: Sequence) -> None:
        """Have a running sequence read its prompt and tokens again from the start, in its slot."""
        s.prompt = s.request.prompt_token_ids + tuple(s.tokens)
        s.computed = 0

    def _steps(self, decode) -> int:
        steps = min(
            self.limits.decode_steps, max(self._left(self.running[slot]) for slot in decode)
        )
        if self.limits.rope_switch:
            for slot in decode:
                if self.running[slot].computed < self.limits.rope_switch:
                    steps = min(steps, self.limits.rope_switch - self.running[slot].computed)
        return steps
