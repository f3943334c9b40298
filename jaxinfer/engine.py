"""plan -> run -> record, and nothing else.

The engine holds one model's programs and device state and turns plans into feeds. It dispatches the next step before
it reads the last one's tokens, so host and device work at the same time. It knows no text: ids in, events out.
"""

import dataclasses
from collections import deque
from collections.abc import Iterator
from collections.abc import Sequence as Many
from dataclasses import dataclass

import jax
import numpy as np

from jaxinfer import cache as kv
from jaxinfer import sampler, sharding
from jaxinfer.config import ModelConfig
from jaxinfer.generate import cache_dtype
from jaxinfer.models import attention, decoder
from jaxinfer.pages import PagePool
from jaxinfer.request import Request, SamplingParams, Token
from jaxinfer.scheduler import Limits, Plan, Scheduler, Sequence
from jaxinfer.step import Entry, Feed, Output, Programs, State, new_state

SMALLEST_SPAN = 128  # the least cache slots a program reads per row; buckets double from here
UNBOUNDED = 2**30
SMALLEST_STEP = 16  # the least tokens of a ragged step; buckets double from here
TOP_N = (0, 8, 32)  # how many alternatives a program returns per token, where log-probabilities are asked for


GREEDY = SamplingParams(temperature=0.0, seed=0)  # what unused rows hold


@dataclass(frozen=True)
class InFlight:
    """A dispatched step: rows of its output that belong to a sequence, and the output still on the device."""

    rows: tuple[tuple[int, Sequence], ...]
    output: Output


def bucket(value: int, smallest: int, largest: int) -> int:
    """The least power-of-two multiple of `smallest` that holds value, but no more than `largest`."""
    size = smallest
    while size < value:
        size *= 2
    return min(size, largest)


def _for_model(limits: Limits, config: ModelConfig, rings: Many[kv.Ring]) -> Limits:
    """The limits with what follows from the model filled in."""
    ropes = [layer.rope for layer in config.layers if layer.rope is not None]
    by_length = {rope.scaling: rope.original_max_position for rope in ropes}
    spare = [ring.capacity - ring.window - ring.sinks for ring in rings if ring.window and ring.capacity < limits.max_length]
    return dataclasses.replace(
        limits,
        rope_switch=by_length.get("longrope", 0),
        reuse=limits.reuse and "dynamic" not in by_length,
        rollback=max(0, min(spare, default=limits.max_length)),
    )


class Engine:
    """Runs requests over a fixed number of slots.

    page_size None: every slot owns one page of the ring's capacity. Otherwise `num_pages` pages (default: enough for
    all slots) are shared through page tables. stream_window, sinks: endless streams, see `cache.plan_rings`.
    """

    def __init__(
        self, params: decoder.Params, config: ModelConfig, limits: Limits, *, mesh=None, eos_ids: Many[int] = (), page_size: int | None = None,
        num_pages: int | None = None, stream_window: int | None = None, sinks: int = 0, seed: int | None = None,
    ):  # fmt: skip
        self.eos_ids = tuple(eos_ids)
        self._config = config
        self._programs = Programs(params, config, mesh)
        self._rng = np.random.default_rng(seed)
        rings, groups = kv.plan_rings(
            config, limits.max_length, max_chunk=limits.chunk, page_size=page_size, stream_window=stream_window,
            sinks=sinks,
        )  # fmt: skip
        limits = self.limits = _for_model(limits, config, rings)
        pools, per_slot = [], []
        for ring in rings if page_size is not None else ():
            each = ring.capacity // page_size
            per_slot.append((each, page_size))
            pools.append(PagePool(num_pages or each * limits.slots))
        self._scheduler = Scheduler(limits, tuple(pools), tuple(per_slot))
        self._largest_span = max(ring.capacity for ring in rings)
        cache = kv.init_cache(
            config, rings, groups, limits.slots, cache_dtype(params),
            num_kv_heads=attention.held_kv_heads(config, params.shards), page_size=page_size,
            num_pages=[pool.size for pool in pools], mesh=mesh,
        )  # fmt: skip
        state = new_state(cache, config.vocab_size)
        if mesh is not None:
            everywhere = sharding.place("", mesh)
            rest = jax.device_put(state.replace(cache=None), everywhere)
            state = rest.replace(cache=cache)
        self._state: State = state
        self._in_flight: deque[InFlight] = deque()

    @property
    def idle(self) -> bool:
        return self._scheduler.idle and not self._in_flight

    def add(self, request: Request) -> Sequence:
        """Queue a request; ValueError (and nothing disturbed) where it does not fit the model or the cache."""
        request.validate(self._config.vocab_size)
        return self._scheduler.add(request, self.eos_ids)

    def abort(self, sequence: Sequence) -> None:
        """Take a sequence out now; tokens still under way for it are dropped."""
        if not sequence.finished and sequence.slot >= 0:
            self._state = self._programs.halt(self._state, np.asarray([sequence.slot], np.int32))
        self._scheduler.finish(sequence)

    def run(self, requests: Many[Request]) -> Iterator[Token]:
        """All requests to their end; events as they come. Abandoning the iterator aborts what is left."""
        sequences = [self.add(request) for request in requests]
        try:
            while not self.idle:
                yield from self.step()
        finally:
            for sequence in sequences:
                self.abort(sequence)

    def drain(self) -> None:
        """Wait for what is under way and drop its tokens; the engine is as good as new for other requests."""
        while self._in_flight:
            self._record(self._in_flight.popleft())

    def step(self) -> list[Token]:
        """Dispatch the next step, then read the one before it."""
        plan = self._scheduler.plan()
        if plan is not None:
            self._in_flight.append(self._dispatch(plan))
        if self._in_flight and (plan is None or len(self._in_flight) > 1):
            return self._record(self._in_flight.popleft())
        return []

    def _dispatch(self, plan: Plan) -> InFlight:
        if plan.admitted:
            self._admit(plan.admitted)
        running = self._scheduler.running
        span = bucket(plan.longest, SMALLEST_SPAN, self._largest_span)
        slots = [*(chunk.slot for chunk in plan.chunks), *plan.decode]
        wanted = [running[slot].request.params.logprobs for slot in slots]
        wanted = [n for n in wanted if n is not None]
        top_n = min(n for n in TOP_N if n >= max(wanted)) if wanted else None
        if plan.chunks:
            feed, max_count = self._feed(plan)
            self._state, output = self._programs.advance(
                self._state, feed, max_count=max_count, span=span, top_n=top_n
            )
            final = [chunk.final for chunk in plan.chunks] + [True] * len(plan.decode)
            rows = tuple((i, running[slot]) for i, slot in enumerate(slots) if final[i])
        else:
            decodes = np.zeros((self.limits.slots,), bool)
            decodes[list(plan.decode)] = True
            self._state, output = self._programs.decode_loop(
                self._state, decodes, np.int32(plan.steps), max_steps=self.limits.decode_steps, span=span, top_n=top_n
            )
            rows = tuple((slot, running[slot]) for slot in plan.decode)
        return InFlight(rows, output)

    def _feed(self, plan: Plan) -> tuple[Feed, int]:
        """The step's arrays, padded to buckets, and the bucket of the longest chunk."""
        B = self.limits.slots
        total = sum(len(chunk.tokens) for chunk in plan.chunks) + len(plan.decode)
        tokens = np.zeros((bucket(total, SMALLEST_STEP, UNBOUNDED),), np.int32)
        R = 1 if len(plan.chunks) + len(plan.decode) == 1 else B
        at = 0
        feed = Feed(
            tokens=tokens, slots=np.full((R,), B, np.int32), counts=np.zeros((R,), np.int32),
            reach=np.ones((R,), np.int32), fresh=np.zeros((R,), bool), final=np.zeros((R,), bool),
            decodes=np.zeros((R,), bool),
        )  # fmt: skip
        for row, chunk in enumerate(plan.chunks):
            count = len(chunk.tokens)
            tokens[at : at + count] = chunk.tokens
            feed.slots[row], feed.counts[row], feed.reach[row] = chunk.slot, count, chunk.reach
            feed.fresh[row], feed.final[row] = chunk.start == 0, chunk.final
            at += count
        for row, slot in enumerate(plan.decode, len(plan.chunks)):
            tokens[at] = -1
            feed.slots[row], feed.counts[row] = slot, 1
            feed.reach[row] = self._scheduler.running[slot].computed
            feed.final[row] = feed.decodes[row] = True
            at += 1
        return feed, min(self.limits.chunk, len(tokens))

    def _admit(self, admitted: tuple[Sequence, ...]) -> None:
        A, B, V = bucket(len(admitted), 1, self.limits.slots), self.limits.slots, self._config.vocab_size
        slots = np.full((A,), B, np.int32)
        slots[: len(admitted)] = [s.slot for s in admitted]
        params = [s.request.params for s in admitted] + [GREEDY] * (A - len(admitted))
        remaining = np.asarray([p.max_new_tokens for p in params], np.int32)
        sampling = sampler.pack(params, V, self.eos_ids, rng=self._rng)
        recent = np.full((A, sampler.RECENT), -1, np.int32)
        most = max(s.reused for s in admitted)
        reused = np.full((A, bucket(most, SMALLEST_SPAN, UNBOUNDED)), V, np.int32)
        lengths = np.zeros((A,), np.int32)
        for row, s in enumerate(admitted):
            last = s.prompt[-sampler.RECENT :]
            recent[row, sampler.RECENT - len(last) :] = last
            lengths[row] = s.reused
            reused[row, : s.reused] = s.prompt[: s.reused]
        tables = []
        for group, table in enumerate(self._state.cache.tables):
            if table is None:
                tables.append(None)
                continue
            pages = np.zeros((A, table.shape[1]), np.int32)
            for row, s in enumerate(admitted):
                pages[row, : len(s.pages[group])] = s.pages[group]
            tables.append(pages)
        entry = Entry(
            slots=slots, remaining=remaining, sampling=sampling, lengths=lengths, reused=reused, recent=recent,
            tables=tuple(tables),
        )  # fmt: skip
        self._state = self._programs.admit(self._state, entry)

    def _record(self, step: InFlight) -> list[Token]:
        output: Output = jax.device_get(step.output)
        events = []
        for i in range(output.tokens.shape[1]):
            for row, sequence in step.rows:
                token = int(output.tokens[row, i])
                if token < 0 or sequence.finished:
                    continue
                wanted = sequence.request.params.logprobs
                logprob = top = None
                if wanted is not None:
                    logprob = float(output.logprobs[row, i])
                    pairs = zip(output.top_ids[row, i, :wanted], output.top_logprobs[row, i, :wanted], strict=True)
                    top = tuple((int(token), float(value)) for token, value in pairs)
                events.append(self._scheduler.record(sequence, token, logprob, top))
        return events
