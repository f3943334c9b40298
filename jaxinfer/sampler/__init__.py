"""From logits to a token, for every row of a batch by its own parameters, in one program.

Reading order: `settings` (the parameters as arrays), `history` (what was seen), `penalties` (edits
of the logits), `mask` (what a grammar allows), `warpers` (temperature and filters; a threshold
search, no sort), `draw` (the token and its log-probability). It knows nothing of models, caches or
stop strings.
"""

from jaxinfer.sampler.draw import Sampled, position_keys, process, sample
from jaxinfer.sampler.history import (
    RECENT,
    History,
    empty_history,
    see_prompt,
    start_history,
    update,
)
from jaxinfer.sampler.mask import Mask, clear_masks, mask_words, no_mask, set_masks
from jaxinfer.sampler.settings import (
    MAX_EOS_IDS,
    Sampling,
    greedy,
    needs_history,
    pack,
    request_key,
    set_rows,
    stops,
)

__all__ = [
    "MAX_EOS_IDS",
    "RECENT",
    "History",
    "Mask",
    "Sampled",
    "Sampling",
    "clear_masks",
    "empty_history",
    "greedy",
    "mask_words",
    "needs_history",
    "no_mask",
    "pack",
    "position_keys",
    "process",
    "request_key",
    "sample",
    "see_prompt",
    "set_masks",
    "set_rows",
    "start_history",
    "stops",
    "update",
]
