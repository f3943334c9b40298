"""A plan -> a step under way on the device -> what it sampled."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from jaxinfer.engine.device import Device
from jaxinfer.engine.feeds import TOP_N, Feeds
from jaxinfer.scheduler import Plan, Sequence
from jaxinfer.step import Output

Sampled = tuple[Sequence, int, float | None, tuple[tuple[int, float], ...] | None]


@dataclass(frozen=True)
class InFlight:
    """A dispatched step: rows of its output that belong to a sequence, and the output still on the
    device. sequences: all that took part.
    """

    rows: tuple[tuple[int, Sequence], ...]
    sequences: tuple[Sequence, ...]
    output: Output


def dispatch(device: Device, feeds: Feeds, plan: Plan, sequences: tuple[Sequence, ...]) -> InFlight:
    """Start a step. sequences: who takes part, first those that read, then those that decode."""
    device.move(plan.moves)
    if plan.admitted:
        device.admit(feeds.entries(plan.admitted))
    for changes in feeds.changes(plan.changes):
        device.assign(changes)
    guided = [s for s in sequences if s.mask is not None]
    if guided:
        device.mask(feeds.masks(guided))
    wanted = [n for s in sequences if (n := s.request.params.logprobs) is not None]
    top_n = min(n for n in TOP_N if n >= max(wanted)) if wanted else None
    span = feeds.span(plan)
    if plan.chunks:
        feed = feeds.feed(plan, {s.slot: s for s in sequences})
        output = device.advance(feed, span, top_n)
        rows = tuple((i, s) for i, s in enumerate(sequences) if feed.final[i])
    else:
        decodes = np.zeros((feeds.limits.slots,), bool)
        decodes[list(plan.decode)] = True
        output = device.decode(decodes, plan.steps, span, top_n)
        rows = tuple(zip(plan.decode, sequences, strict=True))
    return InFlight(rows, sequences, output)


def sampled(step: InFlight, output: Output) -> Iterator[Sampled]:
    """What came back, in the order in which it was drawn: (sequence, token, its log-probability,
    the likeliest tokens and theirs).
    """
    for i in range(output.tokens.shape[1]):
        for row, sequence in step.rows:
            token = int(output.tokens[row, i])
            if token < 0:
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
            yield sequence, token, logprob, top
