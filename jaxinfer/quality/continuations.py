"""Where two settings' greedy continuations of the same prompts part, on the path that serves them."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from jaxinfer.quality.settings import Side
from jaxinfer.request import SamplingParams


@dataclass(frozen=True)
class Continuations:
    """first: per prompt the index of the first generated token that differs, None where none of
    `tokens` does.
    """

    tokens: int
    first: tuple[int | None, ...]

    @property
    def identical(self) -> int:
        """How many prompts never part."""
        return sum(at is None for at in self.first)

    @property
    def parted(self) -> list[int]:
        """Where the others do, ascending."""
        return sorted(at for at in self.first if at is not None)

    def describe(self) -> dict:
        parted = self.parted
        return {
            "prompts": len(self.first),
            "tokens": self.tokens,
            "identical": self.identical,
            "least": parted[0] if parted else None,
            "median": statistics.median(parted) if parted else None,
            "most": parted[-1] if parted else None,
            "first_divergence": list(self.first),
        }


def prompts_from(ids: Sequence[int], count: int, length: int) -> list[list[int]]:
    """`count` prompts of `length` ids at even distances over a text (fewer where they would be the
    same, shorter where the text is).
    """
    length = min(length, len(ids))
    room = len(ids) - length
    starts = [round(i * room / max(count - 1, 1)) for i in range(count)]
    return [list(ids[start : start + length]) for start in dict.fromkeys(starts)]


def first_divergence(ours: Sequence[int], theirs: Sequence[int]) -> int | None:
    """The first index at which two token lists differ; None where they are equal."""
    for at, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if a != b:
            return at
    return None


def continue_both(
    reference: Side, candidate: Side, prompts: Sequence[Sequence[int]], tokens: int
) -> Continuations:
    """Greedy continuations of `tokens` tokens by both, through the engine."""
    params = SamplingParams(temperature=0.0, max_new_tokens=tokens, ignore_eos=True)

    def continued(side: Side) -> list[tuple[int, ...]]:
        with side.in_force():
            return [completion.token_ids for completion in side.model.generate(prompts, params)]

    ours, theirs = continued(reference), continued(candidate)
    first = tuple(first_divergence(a, b) for a, b in zip(ours, theirs, strict=True))
    return Continuations(tokens, first)
