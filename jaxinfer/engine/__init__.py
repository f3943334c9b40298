"""plan -> run -> record, and nothing else.

The engine holds one model's programs and device state and turns plans into feeds. It dispatches the
next step before it reads the last one's tokens, so host and device work at the same time. It knows
no text: ids in, events out. All memory for keys and values is taken at the start.
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Many

import jax
import numpy as np

from jaxinfer import cache as kv
from jaxinfer.config import ModelConfig
from jaxinfer.engine.device import Device, check_same_form
from jaxinfer.engine.feeds import PROMPT_GROWTH as PROMPT_GROWTH
from jaxinfer.engine.feeds import SMALLEST_SPAN as SMALLEST_SPAN
from jaxinfer.engine.feeds import SMALLEST_STEP as SMALLEST_STEP
from jaxinfer.engine.feeds import TOP_N as TOP_N
from jaxinfer.engine.feeds import Feeds
from jaxinfer.engine.feeds import bucket as bucket
from jaxinfer.engine.in_flight import InFlight, dispatch, sampled
from jaxinfer.engine.memory import limits_for, page_bytes, pages_within, plan_groups
from jaxinfer.engine.stats import Stats as Stats
from jaxinfer.engine.stats import StepFailed as StepFailed
from jaxinfer.engine.warm_up import everything
from jaxinfer.generate import cache_dtype
from jaxinfer.models import attention, decoder
from jaxinfer.pages import Allocator, PagePool, SwapSpace
from jaxinfer.request import Request, Token
from jaxinfer.scheduler import Limits, Plan, Scheduler, Sequence
from jaxinfer.step import Output, Programs

SWAP_SPACE = 4 * 2**30  # bytes
MOST_FAILURES = 3  # steps that raise one after the other make an engine give up


class Engine:
    """Runs requests over a fixed number of slots.

    page_size None: every slot owns its place in the cache. Otherwise sequences share `num_pages`
    pages through page tables, take them as they grow, and prompts that begin the same share them
    too (prefix_sharing). num_pages None: what fits `memory_fraction` of the device's memory, with
    the parameters that are already there; where that is None too, or the device does not say (CPU),
    enough for all slots at their longest. swap_space: bytes of the host's memory for the pages of
    sequences that give way where pages are short; 0: they are read again. stream_window, sinks: endless streams, see
    `cache.plan_rings`. kv_dtype: what the cache holds, of `cache.KV_DTYPES`; None: `cache_dtype`.
    seed: of the draws of requests without a seed. programs: those of an earlier
    engine of the same model and sizes.

    failed: why the engine takes no more steps, or None.
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
        memory_fraction: float | None = None,
        swap_space: int = SWAP_SPACE,
        prefix_sharing: bool = True,
        stream_window: int | None = None,
        sinks: int = 0,
        kv_dtype: kv.KVDtype | None = None,
        seed: int | None = None,
        programs: Programs | None = None,
    ):
        self.eos_ids = tuple(eos_ids)
        self.failed: Exception | None = None
        self.paused = False
        self._config = config
        self._rng = np.random.default_rng(seed)
        chunk = limits.chunk
        if page_size is not None:
            # a ring that meets fresh pages loses whole pages, not slots, where it wraps
            chunk = max(chunk, limits.decode_steps) + page_size - 1
        rings, layer_groups = kv.plan_rings(
            config,
            limits.max_length,
            max_chunk=chunk,
            page_size=page_size,
            stream_window=stream_window,
            sinks=sinks,
        )
        limits = dataclasses.replace(limits, reuse=limits.reuse and page_size is None)
        limits = self.limits = limits_for(limits, config, rings)
        kept = kv.kv_dtype_of(kv_dtype or cache_dtype(params))
        self._allocator = self._swap = None
        if page_size is not None:
            if num_pages is None and memory_fraction is not None:
                num_pages = pages_within(
                    memory_fraction,
                    params,
                    config,
                    rings,
                    layer_groups,
                    limits,
                    page_size,
                    kept,
                    mesh,
                )
            groups = plan_groups(rings, limits, page_size, num_pages)
            share = prefix_sharing and not limits.rope_follows
            self._allocator = Allocator(page_size, groups, share=share)
            heads = attention.held_kv_heads(config, params.shards)
            each = page_bytes(layer_groups, heads, config.head_dim, page_size, kept)
            self._swap = SwapSpace(swap_space, each)
        self._scheduler = Scheduler(limits, self._allocator, self._swap)
        self._feeds = Feeds.of(
            limits, config.vocab_size, self.eos_ids, rings, paged=page_size is not None
        )
        self._device = Device(
            programs or Programs(params, config, mesh),
            limits,
            rings,
            layer_groups,
            kept,
            page_size=page_size,
            num_pages=[pool.size for pool in self._pools],
        )
        self._in_flight: deque[InFlight] = deque()
        self._events: list[Token] = []
        self._steps = self._prompt_tokens = self._prefix_tokens = self._generated = 0
        self._failures = self._failed_in_a_row = 0

    @property
    def idle(self) -> bool:
        return self._scheduler.idle and not self._in_flight and not self._events

    @property
    def compiled(self) -> int:
        """How many programs have been compiled so far."""
        return self._device.programs.compiled

    @property
    def _pools(self) -> tuple[PagePool, ...]:
        return () if self._allocator is None else self._allocator.pools

    @property
    def stats(self) -> Stats:
        pools, swap = self._pools, self._swap or SwapSpace(0, ())
        return Stats(
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting),
            slots=self.limits.slots,
            pages=sum(pool.size for pool in pools),
            pages_used=sum(pool.size - pool.free for pool in pools),
            pages_kept=sum(pool.kept for pool in pools),
            prompt_tokens=self._prompt_tokens,
            prefix_tokens=self._prefix_tokens,
            generated_tokens=self._generated,
            preemptions=self._scheduler.preemptions,
            swaps_out=swap.outs,
            swaps_in=swap.ins,
            swap_bytes_out=swap.bytes_out,
            swap_bytes_in=swap.bytes_in,
            swap_size=swap.size,
            swap_used=swap.used,
            steps=self._steps,
            failures=self._failures,
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
        """Queue continuation `index` of a request's n.

        priority: lower goes first, then first come. salt: requests with different salts never share
        what the cache holds. reuse: start from what a slot's last sequence left behind, where that
        begins the same. ValueError (and nothing disturbed) where it does not fit the model or the
        cache, QueueFull where `Limits.queue` requests wait, RuntimeError where the engine failed;
        what a grammar raises at its beginning comes through.
        """
        self._check_alive()
        request.validate(self._config.vocab_size)
        self._feeds.check(request.params)
        if not 0 <= index < request.params.n:
            raise ValueError(
                f"index needs to be in 0 .. n - 1 = {request.params.n - 1}, got {index}"
            )
        seed = None
        if request.params.seed is None:
            seed = int(self._rng.integers(2**64, dtype=np.uint64))
        return self._scheduler.add(
            request,
            self.eos_ids,
            priority=priority,
            salt=salt,
            index=index,
            seed=seed,
            reuse=reuse,
        )

    def abort(self, sequence: Sequence) -> None:
        """Take a sequence out now; tokens still under way for it are dropped."""
        if not sequence.finished and sequence.slot >= 0:
            self._device.halt(sequence.slot)
        self._scheduler.finish(sequence)

    def pause(self) -> None:
        """Dispatch no more steps; `step` reads what is under way, then returns nothing."""
        self.paused = True

    def resume(self) -> None:
        """Go on after `pause`."""
        self.paused = False

    def update_params(self, params: decoder.Params) -> None:
        """Swap the parameters for others of the same structure, shapes, dtypes and shardings.

        Steps from now on use them alone: what was cached is forgotten, and sequences under way read
        their prompts and tokens again. ValueError (and nothing changed) where they differ in form.
        """
        programs = self._device.programs
        check_same_form(programs.params, params)
        self._device.programs = programs.with_params(params)
        self._scheduler.restart()

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
        swaps = self._swap is not None and self._swap.size > 0
        work = everything(
            self._feeds, self._device, paged=self._allocator is not None, swaps=swaps, top_n=top_n
        )
        for done, compile_one in enumerate(work, 1):
            compile_one()
            if progress is not None:
                progress(done, len(work))
        return self.compiled

    def run(self, requests: Many[Request]) -> Iterator[Token]:
        """All requests, with all of their continuations, to their end; events as they come.

        Abandoning the iterator aborts what is left.
        """
        sequences = []
        try:
            for request in requests:
                sequences += [self.add(request, index=i) for i in range(request.params.n)]
            while not self.idle:
                yield from self.step()
        finally:
            for sequence in sequences:
                self.abort(sequence)

    def step(self) -> list[Token]:
        """Dispatch the next step, then read the one before it; where somebody who follows a grammar
        cannot go on without the tokens under way, read them first.

        A step that raised is made again, each of its sequences alone first: StepFailed where one
        raised once more, which is then finished without an event; all others go on with the next
        call, from what is known of them. RuntimeError once the engine has failed.
        """
        self._check_alive()
        if self._in_flight and self._scheduler.held:
            self._read()
        plan = None if self.paused else self._scheduler.plan()
        if plan is not None:
            slots = (*(chunk.slot for chunk in plan.chunks), *plan.decode)
            sequences = tuple(self._scheduler.running[slot] for slot in slots)
            try:
                self._in_flight.append(self._dispatch(plan, sequences))
            except Exception as error:
                self._recover(error, sequences)
        if self._in_flight and (plan is None or len(self._in_flight) > 1):
            self._read()
        events, self._events = self._events, []
        return events

    def drain(self) -> None:
        """Wait for what is under way and drop its tokens; the engine is as good as new for other
        requests.
        """
        while self._in_flight:
            self._read()
        self._events.clear()

    def _read(self) -> None:
        """The tokens of the oldest step under way become events."""
        step = self._in_flight.popleft()
        try:
            output = jax.device_get(step.output)
        except Exception as error:
            self._recover(error, step.sequences)
            return
        self._failed_in_a_row = 0
        for s in step.sequences:
            s.suspect = False
        self._record(step, output)

    def _recover(self, error: Exception, sequences: tuple[Sequence, ...]) -> None:
        """After a step that raised. What the device holds may be lost or wrong: it is made anew, and
        everybody reads everything again.
        """
        self._in_flight.clear()
        self._failures += 1
        self._failed_in_a_row += 1
        lost = self._scheduler.fail(sequences)
        try:
            if self._failed_in_a_row >= MOST_FAILURES:
                raise error
            self._device.reset()
        except Exception as last:
            self.failed = last
            rest = (*self._scheduler.running.values(), *self._scheduler.waiting)
            self._scheduler.lose(rest)
            lost += rest
        if lost:
            message = f"a step of {len(sequences)} sequences raised {type(error).__name__}: {error}"
            raise StepFailed(message, lost) from error

    def _check_alive(self) -> None:
        if self.failed is not None:
            raise RuntimeError(
                f"the engine has failed and takes no more steps ({self.failed}); make another"
            ) from self.failed

    def _dispatch(self, plan: Plan, sequences: tuple[Sequence, ...]) -> InFlight:
        self._steps += 1
        for s in plan.admitted:
            if s.visits == 1:
                self._prompt_tokens += len(s.prompt)
                self._prefix_tokens += s.reused
        return dispatch(self._device, self._feeds, plan, sequences)

    def _record(self, step: InFlight, output: Output) -> None:
        for sequence, token_id, logprob, top in sampled(step, output):
            if not sequence.finished:
                self._generated += 1
                self._events.append(self._scheduler.record(sequence, token_id, logprob, top))
