"""What the device is to do next."""

from dataclasses import dataclass

from jaxinfer.pages import Change, Move
from jaxinfer.scheduler.sequence import Sequence


@dataclass(frozen=True)
class Chunk:
    """Prompt tokens of the sequence in `slot`, from position `start` on.

    final: a token is sampled after them.
    """

    slot: int
    tokens: tuple[int, ...]
    start: int
    reach: int
    final: bool


@dataclass(frozen=True)
class Plan:
    """moves: of pages to and from the host, in this order before all else. admitted: sequences that
    enter their slots before this step. changes: of page tables, per
    slot, also before it. chunks: prompt parts. decode: slots that decode in this step; steps: how
    many tokens each (1 beside chunks). longest: no context grows beyond it in this step.
    """

    moves: tuple[Move, ...]
    admitted: tuple[Sequence, ...]
    changes: tuple[tuple[int, Change], ...]
    chunks: tuple[Chunk, ...]
    decode: tuple[int, ...]
    steps: int
    longest: int
