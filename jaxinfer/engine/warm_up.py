"""What compiles every program that an engine can come to need."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from jaxinfer.engine.copies import PIECES
from jaxinfer.engine.device import Device
from jaxinfer.engine.feeds import CHANGES, SMALLEST_STEP, Feeds, ladder


def everything(
    feeds: Feeds, device: Device, *, paged: bool, swaps: bool, top_n: Sequence[int | None]
) -> list[Callable[[], object]]:
    """Calls, one a program, that change nothing. paged, swaps: whether pages are assigned, and
    copied to the host. top_n: see `Engine.warm_up`.
    """
    slots = feeds.limits.slots
    nobody = np.zeros((slots,), bool)
    work: list[Callable[[], object]] = [partial(device.halt, slots)]
    work += [partial(device.mask, feeds.blank_masks(r)) for r in feeds.row_counts]
    work += [
        partial(device.admit, feeds.blank_entry(r, w))
        for r in feeds.row_counts
        for w in feeds.widths
    ]
    if paged:
        nothing = [(feeds.some_changes((), size),) * feeds.groups for size in CHANGES]
        work += [partial(device.assign, changes) for changes in nothing]
    if swaps:
        sizes = [(group, size) for group in range(feeds.groups) for size in PIECES]
        work += [partial(device.warm_move, *each) for each in sizes]
    for n in top_n:
        work += [partial(device.decode, nobody, 0, span, n) for span in feeds.decode_spans]
        work += [
            partial(device.advance, feeds.blank(tokens, r), span, n)
            for tokens in ladder(SMALLEST_STEP, feeds.most_tokens)
            for r in feeds.row_counts
            for span in feeds.prompt_spans
        ]
    return work
