"""Plans -> the arrays of a step, padded to a few sizes so that a few programs serve all.

Host NumPy; it starts nothing on a device.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from jaxinfer import sampler
from jaxinfer.cache import Ring
from jaxinfer.pages import Change
from jaxinfer.request import SamplingParams
from jaxinfer.scheduler import Limits, Plan
from jaxinfer.scheduler import Sequence as Request
from jaxinfer.step import Changes, Entry, Feed, Masks
from pallas_kernels.backend import one_cpu, platform

SMALLEST_SPAN = 128  # the least cache slots a program reads per row; buckets double from here
# on CPU, where decode pays for every slot that it reads, there is one more between those from here on
FINE_SPAN = 512
# what `step.decode_loop` pays there for a copy of the slots that it reads, and for putting them back,
# in readings of them (360M model, 8 rows of 553 in 1,024 slots, 8 steps a loop: 109 ms a step with a
# copy of 768, 85 without one)
COPYING = 6
PROMPT_GROWTH = (
    4  # and grow faster where a prompt is read, which costs more than what it attends to
)
SMALLEST_STEP = 16  # the least tokens of a ragged step; buckets double from here
CHANGES = (64, 1024)  # how many entries of a group's page tables a program changes
TOP_N = (
    0,
    8,
    32,
)  # how many alternatives a program returns per token, where log-probabilities are asked for
GREEDY = SamplingParams(temperature=0.0, seed=0)  # what unused rows hold


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


@dataclass(frozen=True)
class Feeds:
    """The arrays of one engine's steps. largest_span: slots of its largest ring. groups: of layers.
    paged: whether page tables say where slots lie.
    """

    limits: Limits
    vocab_size: int
    eos_ids: tuple[int, ...]
    largest_span: int
    groups: int
    paged: bool

    @classmethod
    def of(
        cls,
        limits: Limits,
        vocab_size: int,
        eos_ids: tuple[int, ...],
        rings: Sequence[Ring],
        *,
        paged: bool,
    ) -> "Feeds":
        span = max(ring.capacity for ring in rings)
        return cls(limits, vocab_size, eos_ids, span, len(rings), paged)

    @property
    def most_tokens(self) -> int:
        """The most tokens of a ragged step, over how many slots read prompts while others decode."""
        slots, limits = self.limits.slots, self.limits
        return max(min(limits.budget, limits.chunk * k) + slots - k for k in range(1, slots + 1))

    @property
    def row_counts(self) -> list[int]:
        return sorted({self.rows(1), self.rows(self.limits.slots)})

    @property
    def widths(self) -> list[int]:
        """How many known tokens an entry can hold per row."""
        return ladder(SMALLEST_SPAN, max(self.limits.max_length, SMALLEST_SPAN))

    @functools.cached_property
    def decode_spans(self) -> list[int]:
        """How many slots a row the programs for decode read."""
        spans = ladder(SMALLEST_SPAN, self.largest_span)
        if platform() == "cpu":
            fine = [n + n // 2 for n in spans if n >= FINE_SPAN]
            spans += [n for n in fine if n < self.largest_span]
        return sorted(n for n in spans if self._worth(n, self.limits.decode_steps))

    def _worth(self, span: int, steps: int) -> bool:
        """Whether `steps` steps gain more by reading `span` slots than by reading all."""
        if self.paged or not one_cpu() or span == self.largest_span:
            return True
        return steps * (self.largest_span - span) > COPYING * span

    @property
    def prompt_spans(self) -> list[int]:
        return ladder(SMALLEST_SPAN, self.largest_span, PROMPT_GROWTH)

    def check(self, params: SamplingParams) -> None:
        """ValueError where a sampler's row could not hold them."""
        sampler.pack([replace(params, seed=0)], self.vocab_size, self.eos_ids)

    def rows(self, count: int) -> int:
        """How many rows a step over `count` slots has: one, or all."""
        return 1 if count == 1 else self.limits.slots

    def span(self, plan: Plan) -> int:
        """How many cache slots per row a step's program reads."""
        if plan.chunks:
            return bucket(plan.longest, SMALLEST_SPAN, self.largest_span, PROMPT_GROWTH)
        longest = min(plan.longest, self.largest_span)
        return next(n for n in self.decode_spans if n >= longest and self._worth(n, plan.steps))

    def blank(self, tokens: int, rows: int) -> Feed:
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

    def feed(self, plan: Plan, running: dict[int, Request]) -> Feed:
        """The arrays of a ragged step."""
        rows = len(plan.chunks) + len(plan.decode)
        total = sum(len(chunk.tokens) for chunk in plan.chunks) + len(plan.decode)
        feed = self.blank(bucket(total, SMALLEST_STEP, self.most_tokens), self.rows(rows))
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
            feed.reach[row] = running[slot].computed
            feed.final[row] = feed.decodes[row] = True
            at += 1
        return feed

    def entries(self, admitted: Sequence[Request]) -> Entry:
        """What writes sequences into their slots."""
        known = [_known(s) for s in admitted]
        most = max(map(len, known), default=0)
        width = bucket(most, SMALLEST_SPAN, max(self.widths[-1], most))
        return self._entries(admitted, known, self.rows(len(admitted)), width)

    def blank_entry(self, rows: int, width: int) -> Entry:
        """As `entries`, of nobody."""
        return self._entries((), (), rows, width)

    def _entries(self, admitted, known, rows: int, width: int) -> Entry:
        A, B, V, n = rows, self.limits.slots, self.vocab_size, len(admitted)
        entry = Entry(
            slots=np.full((A,), B, np.int32),
            remaining=np.zeros((A,), np.int32),
            sampling=sampler.pack(
                [_seeded(s) for s in admitted] + [GREEDY] * (A - n),
                V,
                self.eos_ids,
                indices=[s.index for s in admitted] + [0] * (A - n),
            ),
            lengths=np.zeros((A,), np.int32),
            known=np.zeros((A, width), np.int32),
            known_lengths=np.zeros((A,), np.int32),
            prompt_lengths=np.zeros((A,), np.int32),
            recent=np.full((A, sampler.RECENT), -1, np.int32),
        )
        for row, (s, ids) in enumerate(zip(admitted, known, strict=True)):
            entry.slots[row], entry.lengths[row] = s.slot, s.reused
            entry.remaining[row] = s.request.params.max_new_tokens - len(s.tokens)
            entry.known[row, : len(ids)] = ids
            entry.known_lengths[row] = len(ids)
            entry.prompt_lengths[row] = min(s.reused, len(s.request.prompt_token_ids))
            last = s.prompt[-sampler.RECENT :]
            entry.recent[row, sampler.RECENT - len(last) :] = last
        return entry

    def masks(self, guided: Sequence[Request]) -> Masks:
        """What may come next in sequences that follow a grammar."""
        masks = self.blank_masks(self.rows(len(guided)))
        for row, s in enumerate(guided):
            masks.slots[row], masks.bits[row] = s.slot, s.mask
        return masks

    def blank_masks(self, rows: int) -> Masks:
        """As `masks`, of nobody."""
        words = sampler.mask_words(self.vocab_size)
        slots = np.full((rows,), self.limits.slots, np.int32)
        return Masks(slots=slots, bits=np.zeros((rows, words), np.uint32))

    def changes(self, changes: Sequence[tuple[int, Change]]) -> Iterator[tuple[Changes, ...]]:
        """Changes of page tables, (slot, (group, column, page)) -> for every group its arrays, as
        often as it takes.
        """
        per_group = [
            [(slot, column, page) for slot, (of, column, page) in changes if of == group]
            for group in range(self.groups)
        ]
        most = max(map(len, per_group))
        for begin in range(0, most, CHANGES[-1]):
            parts = [rows[begin : begin + CHANGES[-1]] for rows in per_group]
            longest = max(map(len, parts))
            size = min(size for size in CHANGES if size >= longest)
            yield tuple(self.some_changes(rows, size) for rows in parts)

    def some_changes(self, rows: Sequence[tuple[int, int, int]], size: int) -> Changes:
        """(slot, column, page) of one group, in arrays of `size`."""
        table = np.full((size, 3), (self.limits.slots, 0, 0), np.int32)
        if rows:
            table[: len(rows)] = rows
        return Changes(table[:, 0].copy(), table[:, 1].copy(), table[:, 2].copy())


def _known(s: Request) -> tuple[int, ...]:
    """What a sequence's history begins with: the part of its prompt that is not read again, and
    its own tokens; nothing where its draws do not depend on them.
    """
    if not sampler.needs_history(s.request.params):
        return ()
    prompt = s.request.prompt_token_ids
    return prompt[: min(s.reused, len(prompt))] + tuple(s.tokens)


def _seeded(s: Request) -> SamplingParams:
    params = s.request.params
    return params if params.seed is not None else replace(params, seed=s.seed)
