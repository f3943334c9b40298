"""Pictures of results: the trade-off of latency and throughput, and measured points under a roofline.

matplotlib is an extra, and slow to import: it is looked for when a picture is wanted.
"""

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxinfer.bench.tables import si

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")  # Okabe and Ito
ENDINGS = (".png", ".svg", ".pdf")
LOWEST = 0.15  # the plot's bottom, as a part of the lowest point


def check(path: Path) -> None:
    """ValueError where a picture could not be written to `path`."""
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(
            f"--plot needs a file that ends in {', '.join(ENDINGS)}, got {str(path)!r}"
        )
    if not path.absolute().parent.is_dir():
        raise ValueError(f"--plot needs a folder that is there, got {str(path.parent)!r}")
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--plot needs matplotlib, which is not here: pip install 'jaxinfer[plot]'")


def draw(document: dict, path: Path) -> None:
    """Write the picture of a decode or prefill result: a frontier at the left, a roofline at the
    right. ValueError where no row was measured.
    """
    rows = [row for row in document["rows"] if "error" not in row]
    if not rows:
        raise ValueError("a plot needs at least one row that was measured, got none")
    figure = importlib.import_module("matplotlib.figure").Figure(
        figsize=(12, 5), layout="constrained"
    )
    left, right = figure.subplots(1, 2)
    time = "step_ms" if "step_ms" in rows[0] else "ttft_ms"
    series = _series(rows)
    _frontier(left, series, time)
    _roofline(right, series, document["ceilings"])
    figure.suptitle(_title(document, rows[0]), fontsize=11)
    figure.savefig(path, dpi=140)


def _title(document: dict, row: dict) -> str:
    what = document["kind"].split()[-1]
    weights = "random weights" if row["weights"] == "random" else "weights of the checkpoint"
    return f"{row['model']}, {what} on {document['hardware']['device']} ({weights})"


def _series(rows: Sequence[dict]) -> dict[str, list[dict]]:
    """Rows that differ in their batch only, in its order, by what they have in common."""
    found: dict[str, list[dict]] = {}
    for row in rows:
        label = f"{row['quantize'] or row['dtype']}, context {row['context']:,}"
        found.setdefault(label, []).append(row)
    return {label: sorted(part, key=lambda row: row["batch"]) for label, part in found.items()}


def _color(index: int) -> str:
    return COLORS[index % len(COLORS)]


def _frontier(axes: Any, series: dict[str, list[dict]], time: str) -> None:
    for i, (label, rows) in enumerate(series.items()):
        x, y = [row[time] for row in rows], [row["tokens_per_s"] for row in rows]
        tokens = [row["tokens_per_s"] * row[time] for row in rows]
        floor = [row["floor_ms"] for row in rows]
        bound = [count / low for count, low in zip(tokens, floor, strict=True)]
        axes.plot(floor, bound, ":", color=_color(i), marker="o", markersize=3, alpha=0.6)
        axes.plot(x, y, "-", color=_color(i), marker="o", label=label)
        for row, at_x, at_y in zip(rows, x, y, strict=True):
            axes.annotate(
                f"{row['batch']}",
                (at_x, at_y),
                textcoords="offset points",
                xytext=(7, -3) if i % 2 else (-7, -3),
                ha="left" if i % 2 else "right",
                fontsize=8,
                color=_color(i),
            )
    axes.plot([], [], ":", color="gray", marker="o", markersize=3, label="floor of this machine")
    names = {"step_ms": "time per token of a row (ms)", "ttft_ms": "time to first token (ms)"}
    axes.set(xscale="log", yscale="log", xlabel=names[time], ylabel="tokens per second, all rows")
    axes.set_title("latency and throughput (numbers: batch)", fontsize=10)
    axes.margins(0.12)
    _finish(axes)


def _roofline(axes: Any, series: dict[str, list[dict]], ceilings: dict) -> None:
    read, peaks = ceilings["read_bytes_per_s"], ceilings["matmul_flop_per_s"]
    rows = [row for part in series.values() for row in part]
    ridges = [peak / read for peak in peaks.values()]
    low = min(row["intensity"] for row in rows) / 3
    high = max(max(row["intensity"] for row in rows), max(ridges)) * 3
    axes.plot(
        [low, max(ridges)],
        [low * read, max(ridges) * read],
        color="black",
        label=f"read {si(read, 'B/s')}",
    )
    for style, (name, peak) in zip(("-", "--", "-."), peaks.items(), strict=False):
        axes.plot(
            [peak / read, high],
            [peak, peak],
            style,
            color="black",
            label=f"{name} {si(peak, 'op/s')}",
        )
    for i, (label, part) in enumerate(series.items()):
        axes.plot(
            [row["intensity"] for row in part],
            [row["flop_per_s"] for row in part],
            "o",
            color=_color(i),
            label=label,
        )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="FLOPs per byte of weights and cache",
        ylabel="FLOP per second",
        xlim=(low, high),
        ylim=(min(row["flop_per_s"] for row in rows) * LOWEST, max(peaks.values()) * 3),
    )
    axes.set_title("measured points under this machine's roofline", fontsize=10)
    _finish(axes)


def _finish(axes: Any) -> None:
    """Ticks that can be read, a grid, a legend."""
    ticker = importlib.import_module("matplotlib.ticker")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.set_minor_formatter(ticker.NullFormatter())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    axes.grid(True, which="both", alpha=0.2)
    axes.legend(fontsize=8, loc="best")
