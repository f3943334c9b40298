"""What a load says in numbers: percentiles, rates, goodput, errors by kind."""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from jaxinfer.bench.serve.client import Outcome
from jaxinfer.bench.serve.load import Load

POINTS = (50, 90, 99)
LIMITED = ("ttft", "tpot", "itl", "e2e")
QUANTILES = np.linspace(0, 100, 101)
BUSY = 0.8  # of a core: above it, times are this client's as much as the server's


def limits(text: str | None) -> dict[str, float] | None:
    """ "ttft:200,tpot:50" -> {"ttft": 200.0, "tpot": 50.0}, milliseconds."""
    if text is None:
        return None
    found = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\w+):(\d+(?:\.\d+)?)\s*", part)
        if match is None or match[1] not in LIMITED or float(match[2]) <= 0 or match[1] in found:
            raise ValueError(
                f"--goodput needs limits in ms for some of {', '.join(LIMITED)}, like "
                f"ttft:200,tpot:50, got {text!r}"
            )
        found[match[1]] = float(match[2])
    return found


def summary(seconds: Sequence[float]) -> dict[str, float] | None:
    """Mean, percentiles (linear between neighbours) and the largest, in ms; None of nothing."""
    if not len(seconds):
        return None
    ms = np.asarray(seconds) * 1e3
    at = {f"p{point}": float(np.percentile(ms, point)) for point in POINTS}
    return {"mean": float(ms.mean()), **at, "max": float(ms.max())}


def meets(outcome: Outcome, bounds: dict[str, float]) -> bool:
    """Whether a whole answer came within every limit, in ms; itl is its longest gap."""
    tpot = outcome.tpot
    taken = {
        "ttft": outcome.ttft,
        "tpot": 0.0 if tpot is None else tpot,
        "itl": max(outcome.gaps, default=0.0),
        "e2e": outcome.e2e,
    }
    return outcome.error is None and all(taken[k] * 1e3 <= most for k, most in bounds.items())


def row(load: Load, model: str, bounds: dict[str, float] | None) -> dict:
    """One row of the result. Times and tokens are those of whole answers; rates are per second of
    `seconds`; goodput's share is of all requests that were sent or should have been.
    """
    case, seconds = load.case, max(load.seconds, 1e-9)
    whole = [outcome for outcome in load.outcomes if outcome.error is None]
    failed = Counter(outcome.error for outcome in load.outcomes if outcome.error is not None)
    if load.unsent:
        failed["not sent in time"] = load.unsent
    read = sum(outcome.prompt_tokens for outcome in whole)
    made = sum(outcome.tokens for outcome in whole)
    times = {
        "ttft": [outcome.ttft for outcome in whole],
        "tpot": [outcome.tpot for outcome in whole if outcome.tpot is not None],
        "itl": [gap for outcome in whole for gap in outcome.gaps],
        "e2e": [outcome.e2e for outcome in whole],
    }
    good = None if bounds is None else sum(meets(outcome, bounds) for outcome in whole)
    return {
        "model": model,
        "arrivals": "fixed" if case.rate is None else "poisson",
        "concurrency": case.concurrency,
        "rate": case.rate,
        "peak_concurrency": load.peak,
        "requests": case.requests,
        "completed": len(whole),
        "errors": dict(failed),
        "error_details": _details(load.outcomes),
        "seconds": load.seconds,
        "input_tokens": read,
        "output_tokens": made,
        "tokens_counted_by": sorted({outcome.counted for outcome in whole}),
        "requests_per_s": len(whole) / seconds,
        "output_tokens_per_s": made / seconds,
        "total_tokens_per_s": (read + made) / seconds,
        **{f"{name}_ms": summary(found) for name, found in times.items()},
        "quantiles_ms": {name: _quantiles(found) for name, found in times.items()},
        "goodput": None
        if good is None
        else {"limits_ms": bounds, "requests_per_s": good / seconds, "share": good / case.requests},
        **_prefix(load, whole),
        "client": {
            "cpu": load.cpu,
            "late_ms": summary(load.late),
        },
    }


def warnings(row: dict) -> list[str]:
    """What a reader should know before believing a row."""
    if row["client"]["cpu"] <= BUSY:
        return failures(row)
    busy = (
        f"this client took {row['client']['cpu'] * 100:.0f}% of a core: its times are too long; "
        "run several, or a smaller load"
    )
    return [busy, *failures(row)]


def failures(row: dict) -> list[str]:
    """A line for each kind of error."""
    found = []
    for kind, count in row["errors"].items():
        said = row["error_details"].get(kind)
        said = f" ({said})" if said else ""
        found.append(f"{count:,} of {row['requests']:,} failed: {kind}{said}")
    return found


def _details(outcomes: Sequence[Outcome]) -> dict[str, str]:
    """What was said with the first error of each kind."""
    found: dict[str, str] = {}
    for outcome in outcomes:
        if outcome.error is not None and outcome.detail:
            found.setdefault(outcome.error, outcome.detail)
    return found


def _quantiles(seconds: Sequence[float]) -> list[float] | None:
    """0%, 1%, .. 100%, in ms: enough to draw a distribution again."""
    if not len(seconds):
        return None
    return [round(float(ms), 4) for ms in np.percentile(np.asarray(seconds) * 1e3, QUANTILES)]


def _prefix(load: Load, whole: Sequence[Outcome]) -> dict:
    """The part of prompts' tokens found in the server's cache, and who said so."""
    if load.prefix is not None:
        hits, asked = load.prefix
        return {"prefix_hit_rate": hits / asked, "prefix_hits_counted_by": "metrics"}
    told = [outcome for outcome in whole if outcome.cached_tokens is not None]
    asked = sum(outcome.prompt_tokens for outcome in told)
    if not asked:
        return {"prefix_hit_rate": None, "prefix_hits_counted_by": None}
    hits = sum(outcome.cached_tokens or 0 for outcome in told)
    return {"prefix_hit_rate": hits / asked, "prefix_hits_counted_by": "usage"}
