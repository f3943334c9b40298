"""How much a setting changes what a model says: two settings of one text side by side.

`compare` reads a text with both and gives a `Report`: perplexity of each, divergence of their
distributions token by token, agreement, where greedy continuations part, and a verdict.
"""

from jaxinfer.quality.continuations import Continuations, first_divergence
from jaxinfer.quality.distances import Distances, Kept, between
from jaxinfer.quality.report import LEVELS, Level, Report, together, verdict
from jaxinfer.quality.settings import Setting, Side, load, load_beside
from jaxinfer.quality.speed import timed
from jaxinfer.quality.texts import compare

__all__ = [
    "LEVELS",
    "Continuations",
    "Distances",
    "Kept",
    "Level",
    "Report",
    "Setting",
    "Side",
    "between",
    "compare",
    "first_divergence",
    "load",
    "load_beside",
    "timed",
    "together",
    "verdict",
]
