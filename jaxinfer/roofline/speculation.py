"""Speculative decoding: what a draft of some length and acceptance rate is worth.

Leviathan et al. 2023, "Fast Inference from Transformers via Speculative Decoding", sections 2 and 3.
"""

from dataclasses import dataclass

from jaxinfer.roofline.bounds import Bound


@dataclass(frozen=True)
class Speculation:
    """step_s: drafting and verifying. tokens: expected from it per row. token_s: seconds per token of a
    row. speedup over decoding without a draft.
    """

    step_s: float
    tokens: float
    token_s: float
    speedup: float


def expected_tokens(acceptance: float, draft_length: int) -> float:
    """(1 - a^(n+1)) / (1 - a): tokens per step where each of n drafted is accepted with probability a
    (their equation 1).
    """
    if not 0 <= acceptance <= 1 or draft_length < 0:
        raise ValueError(
            f"speculation needs 0 <= acceptance <= 1 and draft_length >= 0, got {acceptance=}, "
            f"{draft_length=}"
        )
    return float(sum(acceptance**i for i in range(draft_length + 1)))


def speculate(
    plain: Bound, verify: Bound, draft: Bound, draft_length: int, acceptance: float
) -> Speculation:
    """plain: a decode step of the model; verify: its step over draft_length + 1 tokens of each row;
    draft: a decode step of the draft.
    """
    step = draft_length * draft.latency_s + verify.latency_s
    tokens = expected_tokens(acceptance, draft_length)
    return Speculation(step, tokens, step / tokens, plain.latency_s * tokens / step)
