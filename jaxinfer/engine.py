"""plan -> run -> record, and nothing else.

The engine holds one model's programs and device state and turns plans into feeds. It dispatches the
next step before it reads the last one's tokens, so host and device work at the same time. It knows
no text: ids in, events out.
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Many
from dataclasses import dataclass
from functools import partial

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
from pallas_kernels.backend import platform

SMALLEST_SPAN = 128  # the least cache slots a program reads per row; buckets double from here
# on CPU, where decode pays for every slot that it reads, there is one more between those from here on
FINE_SPAN = 512
PROMPT_GROWTH = (
    4  # and grow faster where a prompt is read, which costs more than what it attends to
)
SMALLEST_STEP = 16  # the least tokens of a ragged step; buckets double from here
TOP_N = (
    0,
    8,
    32,
)  # how many alternatives a program returns per token, where log-probabilities are asked for


GREEDY = SamplingParams(temperature=0.0, seed=0)  # what unused rows hold


@dataclass(frozen=True)
class InFlight:
    """A dispatched step: rows of its output that belong to a sequence, and the output still on the
    device.
    """

    rows: tuple[tuple[int, Sequence], ...]
    output: Output


@dataclass(frozen=True)
class Stats:
    """What an engine is doing and has done. running, waiting: requests now. pages, pages_used: of
    all groups of layers, 0 where slots own their pages. prompt_tokens: of admitted requests;
    prefix_tokens: those of them found in the cache. preemptions: sequences that gave way.
    """

    running: int
    waiting: int
    slots: int
    pages: int
    pages_used: int
    prompt_tokens: int
    prefix_tokens: int
    generated_tokens: int
    preemptions: int
    steps: int
    compiled: int


class StepFailed(RuntimeError):
    """A step raised: `sequences` are lost, the engine goes on (unless `Engine.failed`)."""

    def __init__(self, message: str, sequences: tuple[Sequence, ...]):
        super().__init__(message)
        self.sequences = sequences


def bucket(value: int, smallest: int, largest: int, growth: int = 2) -> int:
    """The least power-of-`growth` multiple of `smallest` that holds value, at most `largest`."""
    size = smallest
    while size < value:
        size *= growth
    return min(size, largest)


def ladder(smallest: int, largest: int, growth: int = 2) -> list[int]:
    """Every value that `bucket` gives for 1 .. largest."""
    steps = [bucket(1, smallest, largest, growth)]
    while steps[-1] < largest:
        steps.append(bucket(steps[-1] + 1, smallest, largest, growth))
    return steps


def _decode_spans(largest: int) -> list[int]:
    """How many slots a row the programs for decode read."""
    spans = ladder(SMALLEST_SPAN, largest)
    if platform() == "cpu":
        spans += [n + n // 2 for n in spans if n >= FINE_SPAN and n + n // 2 < largest]
    return sorted(spans)


def _for_model(limits: Limits, config: ModelConfig, rings: Many[kv.Ring]) -> Limits:
    """The limits with what follows from the model filled in."""
    ropes = [layer.rope for layer in config.layers if layer.rope is not None]
    by_length = {rope.scaling: rope.original_max_position for rope in ropes}
    wraps = [
        ring for ring in rings if ring.window is not None and ring.capacity < limits.max_length
    ]
    spare = [ring.capacity - (ring.window or 0) - ring.sinks for ring in wraps]
    return dataclasses.replace(
        limits,
        rope_switch=by_length.get("longrope", 0),
        reuse=limits.reuse and "dynamic" not in by_length,
        rollback=max(0, min(spare, default=limits.max_length)),
    )


class Engine:
    """Runs requests over a fixed number of slots.

    page_size None: every slot owns one page of the ring's capacity. Otherwise `num_pages` pages
    (default: enough for all slots) are shared through page tables. stream_window, sinks: endless
    streams, see `cache.plan_rings`. programs: those of an earlier engine of the same model and sizes.
    """

    def __init__(
        self,
        params: decoder.Params,
        config: ModelConfig,
        limits: Limits,
        *,
        mesh=None,
        eos_ids: Many[int] = (),
        page_size: int | None = None,
        num_pages: int | None = None,
        stream_window: int | None = None,
        sinks: int = 0,
        seed: int | None = None,
        programs: Programs | None = None,
    ):
        self.eos_ids = tuple(eos_ids)
        self._config = config
        self._programs = programs or Programs(params, config, mesh)
        self._rng = np.random.default_rng(seed)
        rings, groups = kv.plan_rings(
            config,
            limits.max_length,
            max_chunk=limits.chunk,
            page_size=page_size,
            stream_window=stream_window,
            sinks=sinks,
        )
        limits = dataclasses.replace(limits, reuse=limits.reuse and page_size is None)
        limits = self.limits = _for_model(limits, config, rings)
        pools, per_slot = [], []
        if page_size is not None:
            per_slot = [(ring.capacity // page_size, page_size) for ring in rings]
            pools = [PagePool(num_pages or each * limits.slots) for each, _ in per_slot]
        self._scheduler = Scheduler(limits, tuple(pools), tuple(per_slot))
        self._largest_span = max(ring.capacity for ring in rings)
        self._decode_spans = _decode_spans(self._largest_span)
        reading = range(
            1, limits.slots + 1
        )  # how many slots may read prompts while the others decode
        self._most_tokens = max(
            min(limits.budget, limits.chunk * k) + limits.slots - k for k in reading
        )
        self._most_reused = max(limits.max_length, SMALLEST_SPAN) if limits.reuse else SMALLEST_SPAN
        cache = kv.init_cache(
            config,
            rings,
            groups,
            limits.slots,
            cache_dtype(params),
            num_kv_heads=attention.held_kv_heads(config, params.shards),
            page_size=page_size,
            num_pages=[pool.size for pool in pools],
            mesh=mesh,
        )
        state = new_state(cache, config.vocab_size)
        if mesh is not None:
            everywhere = sharding.place("", mesh)
            rest = jax.device_put(state.replace(cache=None), everywhere)
            state = rest.replace(cache=cache)
        self._state: State = state
        self._in_flight: deque[InFlight] = deque()
        self._pools = pools
        self.failed: Exception | None = None
        self.paused = False
        self._steps = self._prompt_tokens = self._prefix_tokens = self._generated = 0

    @property
    def idle(self) -> bool:
        return self._scheduler.idle and not self._in_flight

    @property
    def compiled(self) -> int:
        """How many programs have been compiled so far."""
        return self._programs.compiled

    @property
    def stats(self) -> Stats:
        size = sum(pool.size for pool in self._pools)
        return Stats(
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting),
            slots=self.limits.slots,
            pages=size,
            pages_used=size - sum(pool.free for pool in self._pools),
            prompt_tokens=self._prompt_tokens,
            prefix_tokens=self._prefix_tokens,
            generated_tokens=self._generated,
            preemptions=0,
            steps=self._steps,
            compiled=self.compiled,
        )

    def add(
        self,
        request: Request,
        *,
        priority: int = 0,
        salt: str = "",
        index: int = 0,
        reuse: bool = False,
    ) -> Sequence:
        """Queue a request (continuation `index` of its n).

        priority: lower goes first, then first come. salt: requests with different salts never share
        what the cache holds. reuse: start from what a slot's last sequence left behind, where that
        begins the same. ValueError (and nothing disturbed) where it does not fit the model or the
        cache, QueueFull where `Limits.queue` requests wait.
        """
        request.validate(self._config.vocab_size)
        return self._scheduler.add(
            request, self.eos_ids, priority=priority, salt=salt, index=index, reuse=reuse
        )

    def pause(self) -> None:
        """Dispatch no more steps; `step` reads what is under way, then returns nothing."""
        self.paused = True

    def resume(self) -> None:
        """Go on after `pause`."""
        self.paused = False

    def abort(self, sequence: Sequence) -> None:
        """Take a sequence out now; tokens still under way for it are dropped."""
        if not sequence.finished and sequence.slot >= 0:
            self._halt(sequence.slot)
        self._scheduler.finish(sequence)

    def warm_up(
        self,
        progress: Callable[[int, int], None] | None = None,
        *,
        top_n: Many[int | None] = (None,),
    ) -> int:
        """Compile every program that requests can come to need, before there are any: their number.

        progress(done, in all) is called after each. top_n: of TOP_N, what requests will ask for
        (None: no log-probabilities); others compile when they come.
        """
        rows = sorted({self._rows(1), self._rows(self.limits.slots)})
        nobody = np.zeros((self.limits.slots,), bool)
        work: list[Callable[[], object]] = [lambda: self._halt(self.limits.slots)]
        work += [
            partial(self._admit, (), r, w)
            for r in rows
            for w in ladder(SMALLEST_SPAN, self._most_reused)
        ]
        for n in top_n:
            work += [partial(self._decode, nobody, 0, span, n) for span in self._decode_spans]
            work += [
                partial(self._advance, self._blank_feed(tokens, r), span, n)
                for tokens in ladder(SMALLEST_STEP, self._most_tokens)
                for r in rows
                for span in ladder(SMALLEST_SPAN, self._largest_span, PROMPT_GROWTH)
            ]
        for done, compile_one in enumerate(work, 1):
            compile_one()
            if progress is not None:
                progress(done, len(work))
        return self.compiled

    def run(self, requests: Many[Request]) -> Iterator[Token]:
        """All requests to their end; events as they come.

        Abandoning the iterator aborts what is left.
        """
        sequences = []
        try:
            for request in requests:
                sequences.append(self.add(request))
            while not self.idle:
                yield from self.step()
        finally:
            for sequence in sequences:
                self.abort(sequence)

    def _rows(self, count: int) -> int:
        """How many rows a step over `count` slots has: one, or all."""
        return 1 if count == 1 else self.limits.slots

    def _halt(self, slot: int) -> None:
        self._state = self._programs.halt(self._state, np.asarray([slot], np.int32))

    def drain(self) -> None:
        """Wait for what is under way and drop its tokens; the engine is as good as new for other
        requests.
        """
        while self._in_flight:
            self._record(self._in_flight.popleft())

    def step(self) -> list[Token]:
        """Dispatch the next step, then read the one before it."""
        plan = None if self.paused else self._scheduler.plan()
        if plan is not None:
            self._in_flight.append(self._dispatch(plan))
        if self._in_flight and (plan is None or len(self._in_flight) > 1):
            return self._record(self._in_flight.popleft())
        return []

    def _dispatch(self, plan: Plan) -> InFlight:
        self._steps += 1
        if plan.admitted:
            self._prompt_tokens += sum(len(s.prompt) for s in plan.admitted)
            self._prefix_tokens += sum(s.reused for s in plan.admitted)
            most = max(s.reused for s in plan.admitted)
            self._admit(
                plan.admitted,
                self._rows(len(plan.admitted)),
                bucket(most, SMALLEST_SPAN, self._most_reused),
            )
        running = self._scheduler.running
        slots = [*(chunk.slot for chunk in plan.chunks), *plan.decode]
        wanted = [running[slot].request.params.logprobs for slot in slots]
        wanted = [n for n in wanted if n is not None]
        top_n = min(n for n in TOP_N if n >= max(wanted)) if wanted else None
        if plan.chunks:
            span = bucket(plan.longest, SMALLEST_SPAN, self._largest_span, PROMPT_GROWTH)
            output = self._advance(self._feed(plan), span, top_n)
            final = [chunk.final for chunk in plan.chunks] + [True] * len(plan.decode)
            rows = tuple((i, running[slot]) for i, slot in enumerate(slots) if final[i])
        else:
            decodes = np.zeros((self.limits.slots,), bool)
            decodes[list(plan.decode)] = True
            longest = min(plan.longest, self._largest_span)
            span = next(n for n in self._decode_spans if n >= longest)
            output = self._decode(decodes, plan.steps, span, top_n)
            rows = tuple((slot, running[slot]) for slot in plan.decode)
        return InFlight(rows, output)

    def _advance(self, feed: Feed, span: int, top_n: int | None) -> Output:
        max_count = min(self.limits.chunk, len(feed.tokens))
        self._state, output = self._programs.advance(
            self._state, feed, max_count=max_count, span=span, top_n=top_n
        )
        return output

    def _decode(self, decodes: np.ndarray, steps: int, span: int, top_n: int | None) -> Output:
        self._state, output = self._programs.decode_loop(
            self._state,
            decodes,
            np.int32(steps),
            max_steps=self.limits.decode_steps,
            span=span,
            top_n=top_n,
        )
        return output

    def _blank_feed(self, tokens: int, rows: int) -> Feed:
        """The arrays of a step in which nobody takes part."""
        return Feed(
            tokens=np.zeros((tokens,), np.int32),
            slots=np.full((rows,), self.limits.slots, np.int32),
            counts=np.zeros((rows,), np.int32),
            reach=np.ones((rows,), np.int32),
            fresh=np.zeros((rows,), bool),
            final=np.zeros((rows,), bool),
            decodes=np.zeros((rows,), bool),
        )

    def _feed(self, plan: Plan) -> Feed:
        """The step's arrays, padded to buckets."""
        rows = len(plan.chunks) + len(plan.decode)
        total = sum(len(chunk.tokens) for chunk in plan.chunks) + len(plan.decode)
        feed = self._blank_feed(bucket(total, SMALLEST_STEP, self._most_tokens), self._rows(rows))
        tokens, at = feed.tokens, 0
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
        return feed

    def _admit(self, admitted: Many[Sequence], rows: int, width: int) -> None:
        """Write sequences into their slots, through arrays of `rows` rows and `width` reused
        tokens.
        """
        A, B, V = rows, self.limits.slots, self._config.vocab_size
        slots = np.full((A,), B, np.int32)
        slots[: len(admitted)] = [s.slot for s in admitted]
        params = [s.request.params for s in admitted] + [GREEDY] * (A - len(admitted))
        remaining = np.asarray([p.max_new_tokens for p in params], np.int32)
        sampling = sampler.pack(params, V, self.eos_ids, rng=self._rng)
        recent = np.full((A, sampler.RECENT), -1, np.int32)
        reused = np.full((A, width), V, np.int32)
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
            slots=slots,
            remaining=remaining,
            sampling=sampling,
            lengths=lengths,
            reused=reused,
            recent=recent,
            tables=tuple(tables),
        )
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
                if wanted is not None and output.logprobs is not None:
                    logprob = float(output.logprobs[row, i])
                    pairs = zip(
                        output.top_ids[row, i, :wanted],
                        output.top_logprobs[row, i, :wanted],
                        strict=True,
                    )
                    top = tuple((int(other), float(value)) for other, value in pairs)
                self._generated += 1
                events.append(self._scheduler.record(sequence, token, logprob, top))
        return events
