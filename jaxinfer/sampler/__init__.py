"""From logits to a token, for every row of a batch by its own parameters, in one program.

Reading order: `settings` (the parameters as arrays), `history` (what was seen), `penalties` (edits
of the logits), `warpers` (temperature and filters; a threshold search, no sort), `draw` (the token
and its log-probability). It knows nothing of models, caches or stop strings.
"""

from jaxinfer.sampler.draw import Sampled, position_keys, process, sample
from jaxinfer.sampler.history import History, empty_history, start_history, update
from jaxinfer.sampler.settings import (
    MAX_EOS_IDS,
    Sampling,
    needs_history,
    pack,
    request_key,
    set_rows,
    stops,
)

__all__ = [
    "MAX_EOS_IDS",
    "History",
    "Sampled",
    "Sampling",
    "empty_history",
    "needs_history",
    "pack",
    "position_keys",
    "process",
    "request_key",
    "sample",
    "set_rows",
    "start_history",
    "stops",
    "update",
]
