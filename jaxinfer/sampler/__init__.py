"""From logits to a token, for every row of a batch by its own parameters, in one program.

Reading order: `settings` (the parameters as arrays), `history` (what was seen), `penalties` (edits
of the logits), `warpers` (temperature and filters; a threshold search, no sort), `draw` (the token
and its log-probability). It knows nothing of models, caches or stop strings.
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
    "Sampled",
    "Sampling",
    "empty_history",
    "greedy",
    "needs_history",
    "pack",
    "position_keys",
    "process",
    "request_key",
    "sample",
    "see_prompt",
    "set_rows",
    "start_history",
    "stops",
    "update",
]
