"""Pictures of comparisons: how one's divergence is spread over positions, and where it lies; what
several candidates lose, against their bytes.

matplotlib is an extra, and slow to import: it is looked for when a picture is wanted.
"""

import importlib
import importlib.util
from pathlib import Path

import numpy as np

from jaxinfer.quality.report import Report

FLOOR = 1e-9  # nats; less than this is shown as this
BINS = 60


def check(path: Path) -> None:
    """ValueError where a picture could not be written to `path`."""
    if not path.absolute().parent.is_dir():
        raise ValueError(f"--plot needs a folder that is there, got {str(path.parent)!r}")
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--plot needs matplotlib, which is not here: pip install 'jaxinfer[plot]'")


def draw(report: Report, path: Path) -> None:
    """Write a PNG: left how many positions have which KL, right its mean along the text. ValueError
    where no position has a finite one.
    """
    check(path)
    figure = importlib.import_module("matplotlib.figure").Figure(
        figsize=(11, 4.2), layout="constrained"
    )
    left, right = figure.subplots(1, 2)
    kl = np.maximum(np.asarray(report.distances.kl, np.float64), FLOOR)
    kl = kl[np.isfinite(kl)]
    if not len(kl):
        raise ValueError("a plot needs positions with a finite KL, got none")
    edges = np.geomspace(kl.min() / 2, kl.max() * 2, BINS + 1)
    left.hist(kl, bins=edges, color="tab:blue")
    marks = {"mean": kl.mean(), "p99": np.quantile(kl, 0.99), "max": kl.max()}
    for (name, value), colour in zip(
        marks.items(), ("tab:orange", "tab:red", "black"), strict=True
    ):
        left.axvline(value, color=colour, label=f"{name} {value:.2g}")
    left.set(xscale="log", xlabel="KL per token, nats", ylabel="positions")
    left.legend()
    groups = np.array_split(kl, min(BINS, len(kl)))
    ends = np.cumsum([len(group) for group in groups])
    right.plot(ends, [group.mean() for group in groups], drawstyle="steps-pre", color="tab:blue")
    right.set(yscale="log", xlabel="token of the text", ylabel="mean KL, nats")
    figure.suptitle(
        f"{report.candidate.setting} against {report.reference.setting}: {report.verdict.level}"
    )
    figure.savefig(path, format="png", dpi=120)


def draw_sizes(described: dict, path: Path) -> None:
    """Write a PNG of what `report.together` gives: mean KL and change of perplexity against the bytes
    of the weights. ValueError where no candidate has a finite KL.
    """
    check(path)
    rows = [row for row in described["candidates"] if np.isfinite(row["kl"]["mean"])]
    if not rows:
        raise ValueError("a plot needs candidates with a finite KL, got none")
    figure = importlib.import_module("matplotlib.figure").Figure(
        figsize=(12, 5.6), layout="constrained"
    )
    left, right = figure.subplots(1, 2)
    sizes = [row["candidate"]["weight_bytes"] / 1e6 for row in rows]
    kl = [max(row["kl"]["mean"], FLOOR) for row in rows]
    rise = [100 * row["perplexity_rise"] for row in rows]
    error = [100 * row["perplexity_rise_error"] for row in rows]
    left.plot(sizes, kl, "o", color="tab:blue")
    left.set(yscale="log", ylabel="mean KL to the reference, nats")
    right.errorbar(sizes, rise, yerr=error, fmt="o", color="tab:orange", capsize=2)
    right.axhline(0, color="black", linewidth=0.8)
    right.set(ylabel="change of perplexity, %")
    for axes, heights in ((left, kl), (right, rise)):
        axes.set(xlabel="weights, MB")
        for row, x, y in zip(rows, sizes, heights, strict=True):
            label = row["candidate"]["setting"]
            axes.annotate(label, (x, y), (4, 3), textcoords="offset points", fontsize=7)
    reference = described["reference"]
    size = reference["weight_bytes"] / 1e6
    figure.suptitle(
        f"against {reference['setting']}, {size:,.1f} MB, on {described['tokens']:,} tokens"
    )
    figure.savefig(path, format="png", dpi=120)
