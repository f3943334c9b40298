"""What a comparison says: numbers with their errors, and a verdict with its thresholds.

Knows no model's insides and no terminal.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np

from jaxinfer.perplexity import Perplexity
from jaxinfer.quality.continuations import Continuations
from jaxinfer.quality.distances import Distances
from jaxinfer.quality.settings import Side


@dataclass(frozen=True)
class Level:
    """A verdict and what it demands: mean KL (nats) and rise of perplexity (a part) at most, top-1
    agreement at least. advice: what to do with it.
    """

    name: str
    mean_kl: float
    perplexity_rise: float
    top1_agreement: float
    advice: str


# Anchors: the Llama 3 8B scoreboard of llama.cpp (tools/perplexity/README.md), against float16: q8_0 has
# a mean KL of 0.0014 and the same top token in 97.7%, q4_K_M 0.031 and 91.9%, q3_K_M 0.10, q2_K 0.33
# and 71.1%.
LEVELS = (
    Level(
        "indistinguishable", 0.002, 0.002, 0.97, "use the candidate wherever the reference serves"
    ),
    Level(
        "small loss",
        0.05,
        0.03,
        0.90,
        "use it where its speed or memory matters; texts will differ",
    ),
    Level("noticeable loss", 0.2, 0.10, 0.80, "use it only after measuring it on your own task"),
)
REJECTED = "do not use"


@dataclass(frozen=True)
class Verdict:
    """level: the name of a Level, or REJECTED; sentence: that, why, and what to do."""

    level: str
    sentence: str


@dataclass(frozen=True)
class Report:
    """Two sides over one text. size: bytes predicted; window, stride: how it was read."""

    reference: Side
    candidate: Side
    distances: Distances
    size: int
    window: int
    stride: int
    continuations: Continuations

    @property
    def tokens(self) -> int:
        return len(self.distances.kl)

    @cached_property
    def rise(self) -> tuple[float, float]:
        """The candidate's perplexity over the reference's, less one, and its standard error (of
        paired differences, so far smaller than that of either perplexity).
        """
        mean, error = mean_and_error(self.distances.reference - self.distances.candidate)
        rise = math.expm1(mean) if mean < 700 else math.inf
        return rise, (1 + rise) * error

    @cached_property
    def verdict(self) -> Verdict:
        found = self.distances
        agreement = float(np.mean(found.same_top))
        return verdict(float(np.mean(found.kl)), self.rise[0], agreement)

    def describe(self) -> dict:
        """Every number, ready for JSON."""
        found = self.distances
        kl_mean, kl_error = mean_and_error(found.kl)
        delta = np.abs(np.asarray(found.candidate, np.float64) - found.reference)
        return {
            "reference": self._side(self.reference, found.reference),
            "candidate": self._side(self.candidate, found.candidate),
            "tokens": self.tokens,
            "bytes": self.size,
            "window": self.window,
            "stride": self.stride,
            "perplexity_rise": self.rise[0],
            "perplexity_rise_error": self.rise[1],
            "kl": {
                "mean": kl_mean,
                "error": kl_error,
                "median": float(np.median(found.kl)),
                "p99": float(np.quantile(found.kl, 0.99)),
                "max": float(np.max(found.kl)),
            },
            "top1_agreement": float(np.mean(found.same_top)),
            "top5_overlap": float(np.mean(found.top_overlap)),
            "acceptance": float(np.mean(found.accepted)),
            "max_delta_logprob": float(delta.max()),
            "mean_delta_logprob": float(delta.mean()),
            "continuations": self.continuations.describe(),
            "verdict": self.verdict.level,
            "sentence": self.verdict.sentence,
            "thresholds": [asdict(level) for level in LEVELS],
        }

    def _side(self, side: Side, logprobs) -> dict:
        values = np.asarray(logprobs, np.float64)
        found = Perplexity(-math.fsum(values), len(values), self.size)
        _, error = mean_and_error(values)
        return {
            "setting": str(side.setting),
            "perplexity": found.perplexity,
            "perplexity_error": found.perplexity * error,
            "bits_per_byte": found.bits_per_byte,
            "bits_per_byte_error": error * len(values) / math.log(2) / self.size
            if self.size
            else math.inf,
            "weight_bytes": side.weight_bytes,
            "kv_bytes_per_token": side.kv_bytes_per_token,
            "decode_tokens_per_s": None if side.decode_s is None else 1 / side.decode_s,
        }


def together(described: Sequence[dict]) -> dict:
    """Reports of one reference and text, as `Report.describe` gives them, in one: what they share,
    and `candidates` with what each has of its own.
    """
    shared = ("reference", "tokens", "bytes", "window", "stride", "thresholds")
    first = {key: described[0][key] for key in shared}
    rows = [{k: v for k, v in row.items() if k not in shared} for row in described]
    return {**first, "candidates": rows}


def verdict(mean_kl: float, perplexity_rise: float, top1_agreement: float) -> Verdict:
    """The first of LEVELS whose three demands are met; a sentence with what decided."""
    values = (
        f"mean KL {mean_kl:.2g} nats, perplexity {perplexity_rise:+.2%}, "
        f"top-1 agreement {top1_agreement:.1%}"
    )
    if not all(map(math.isfinite, (mean_kl, perplexity_rise, top1_agreement))):
        return Verdict(
            REJECTED, f"{REJECTED}: one of the two gives numbers that are not finite ({values})"
        )
    missed = ""
    for level in LEVELS:
        misses = _misses(level, mean_kl, perplexity_rise, top1_agreement)
        if not misses:
            reason = f"; not {missed}" if missed else ""
            return Verdict(level.name, f"{level.name}: {values}{reason}. Advice: {level.advice}.")
        missed = f"{level.name}, which needs {' and '.join(misses)}"
    return Verdict(
        REJECTED,
        f"{REJECTED} in the reference's place: {values}; even {missed}. Advice: keep the reference.",
    )


def _misses(level: Level, mean_kl, perplexity_rise, top1_agreement) -> list[str]:
    return [
        demand
        for met, demand in (
            (mean_kl <= level.mean_kl, f"mean KL <= {level.mean_kl:g}"),
            (
                perplexity_rise <= level.perplexity_rise,
                f"perplexity <= {level.perplexity_rise:+.1%}",
            ),
            (
                top1_agreement >= level.top1_agreement,
                f"top-1 agreement >= {level.top1_agreement:.1%}",
            ),
        )
        if not met
    ]


def mean_and_error(values) -> tuple[float, float]:
    """The mean of values along a text and its standard error by batch means: neighbours depend on
    each other, runs of up to 64 hardly (Flegal and Jones 2010). The error of one value is infinite.
    """
    values = np.asarray(values, np.float64)
    run = max(1, min(64, len(values) // 16))
    count = len(values) // run
    means = values[: count * run].reshape(count, run).mean(axis=1)
    error = means.std(ddof=1) / math.sqrt(count) if count > 1 else math.inf
    return float(values.mean()), float(error)
