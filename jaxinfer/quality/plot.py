"""Pictures of comparisons: how one's divergence is spread over positions, and where it lies; what
several candidates lose, against their bytes.

matplotlib is an extra, and slow to import: it is looked for when a picture is wanted.
"""

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxinfer.quality.report import Report

FLOOR = 1e-9  # nats; less than this is shown as this
BINS = 60
LINE = 0.16  # inches from one label to the next
SMALL = 7  # points
LINEAR = 0.1  # %, of perplexity's change: less is drawn on a linear scale


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
    sizes_figure(described).savefig(path, format="png", dpi=120)


def sizes_figure(described: dict) -> Any:
    """The figure of `draw_sizes`, as high as its labels need."""
    rows = [row for row in described["candidates"] if np.isfinite(row["kl"]["mean"])]
    if not rows:
        raise ValueError("a plot needs candidates with a finite KL, got none")
    inches = max(4.5, LINE * len(rows))  # of the axes
    figure = importlib.import_module("matplotlib.figure").Figure(
        figsize=(15, inches + 1.1), layout="constrained"
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
    right.set_yscale("symlog", linthresh=LINEAR)
    right.yaxis.set_major_formatter("{x:+g}")
    right.set(ylabel=f"change of perplexity, % (linear to {LINEAR:g}, then logarithmic)")
    names = [row["candidate"]["setting"] for row in rows]
    for axes, heights in ((left, kl), (right, rise)):
        axes.set(xlabel="weights, MB")
        axes.margins(x=0.08)
        _label(axes, names, sizes, heights, LINE / inches)
    reference = described["reference"]
    size = reference["weight_bytes"] / 1e6
    figure.suptitle(
        f"against {reference['setting']}, {size:,.1f} MB, on {described['tokens']:,} tokens"
    )
    return figure


def _label(
    axes, names: Sequence[str], xs: Sequence[float], ys: Sequence[float], gap: float
) -> None:
    """Names in a column to the right, a thin line from each to its point. gap: between two, a part of
    the axes' height.
    """
    axes.autoscale_view()  # settled, so that a place in the data has one in the axes
    places = axes.transData.transform(np.column_stack([xs, ys]))
    heights = axes.transAxes.inverted().transform(places)[:, 1]
    for name, x, y, height in zip(names, xs, ys, apart(heights, gap), strict=True):
        axes.annotate(
            name,
            (x, y),
            (1.05, height),
            textcoords="axes fraction",
            fontsize=SMALL,
            verticalalignment="center",
            arrowprops=dict(arrowstyle="-", relpos=(0, 0.5), color="0.7", linewidth=0.6, shrinkB=3),
            annotation_clip=False,
        )


def apart(wanted: Sequence[float] | np.ndarray, gap: float) -> np.ndarray:
    """Heights in the order of `wanted`, `gap` from one to the next at least, those that crowd around
    their middle. They lie within 0 .. 1 where there is room.
    """
    wanted = np.asarray(wanted, np.float64)
    order = np.argsort(wanted, kind="stable")
    runs: list[tuple[float, int]] = []  # the lowest place of each run of neighbours, and how many
    for height in wanted[order]:
        low, count = _inside(float(height), 1, gap), 1
        while runs and runs[-1][0] + runs[-1][1] * gap > low:
            before, more = runs.pop()
            low = (before * more + (low - more * gap) * count) / (more + count)
            count += more
            low = _inside(low, count, gap)
        runs.append((low, count))
    found = np.empty_like(wanted)
    found[order] = np.concatenate([low + gap * np.arange(count) for low, count in runs])
    return found


def _inside(low: float, count: int, gap: float) -> float:
    return max(0.0, min(low, 1 - (count - 1) * gap))
