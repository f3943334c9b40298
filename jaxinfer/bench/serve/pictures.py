"""Pictures of a load: how its times are spread, and throughput against what was asked for."""

import importlib
from pathlib import Path
from typing import Any

from jaxinfer.bench.plots import COLORS

NAMES = {"ttft": "time to first token", "itl": "between chunks of text", "e2e": "whole answer"}
STYLES = ("-", "--", ":", "-.")


def draw(document: dict, path: Path) -> None:
    """Write the picture of a result: distributions of times, a line a row; with several rows,
    throughput and latency against concurrency or rate. ValueError where nothing was answered.
    """
    rows = [row for row in document["rows"] if row["completed"]]
    if not rows:
        raise ValueError("a plot needs at least one row with an answer, got none")
    count = 3 if len(rows) == 1 else 4
    figure = importlib.import_module("matplotlib.figure").Figure(
        figsize=(4.6 * count, 4.4), layout="constrained"
    )
    axes = list(figure.subplots(1, count))
    if len(rows) > 1:
        _against(axes.pop(0), rows)
    for one, name in zip(axes, NAMES, strict=True):
        _spread(one, rows, name)
    handles = [(_label(row), _look(i)) for i, row in enumerate(rows)]
    for label, look in handles:
        axes[0].plot([], [], label=label, **look)
    axes[0].legend(fontsize=8, loc="lower right")
    server = document["server"]
    figure.suptitle(f"{server['model']} at {server['url']}", fontsize=11)
    figure.savefig(path, dpi=140)


def _label(row: dict) -> str:
    fixed = row["rate"] is None
    return f"{row['concurrency']:,} at once" if fixed else f"{row['rate']:g} requests/s"


def _look(index: int) -> dict[str, Any]:
    return {
        "color": COLORS[index % len(COLORS)],
        "linestyle": STYLES[index // len(COLORS) % len(STYLES)],
    }


def _spread(axes: Any, rows: list[dict], name: str) -> None:
    """The part of the times that are at most x."""
    for i, row in enumerate(rows):
        quantiles = row["quantiles_ms"][name]
        if quantiles is not None:
            axes.plot(
                quantiles, [k / (len(quantiles) - 1) for k in range(len(quantiles))], **_look(i)
            )
    for part in (0.5, 0.9, 0.99):
        axes.axhline(part, color="gray", linewidth=0.5, linestyle=":")
    axes.set(xlabel=f"{NAMES[name]} (ms)", ylim=(0, 1.01), xlim=(0, None))
    axes.set_yticks([0, 0.5, 0.9, 0.99], ["0", "50%", "90%", "99%"])
    axes.grid(True, axis="x", alpha=0.2)


def _against(axes: Any, rows: list[dict]) -> None:
    """Output tokens per second at the left, median and 99th percentile of TTFT at the right."""
    what = "concurrency" if rows[0]["rate"] is None else "rate"
    rows = sorted(rows, key=lambda row: row[what])
    x = [row[what] for row in rows]
    axes.plot(x, [row["output_tokens_per_s"] for row in rows], "o-", color="black")
    name = {"concurrency": "requests at once", "rate": "requests per second asked for"}[what]
    axes.set(xlabel=name, ylabel="output tokens per second", ylim=(0, None), xscale="log")
    axes.set_xticks(x, [f"{value:g}" for value in x])
    axes.minorticks_off()
    right = axes.twinx()
    for point, style in (("p50", "-"), ("p99", ":")):
        right.plot(
            x,
            [row["ttft_ms"][point] for row in rows],
            style,
            color=COLORS[1],
            marker=".",
            label=f"TTFT {point}",
        )
    right.set(ylabel="time to first token (ms)", ylim=(0, None))
    right.yaxis.label.set_color(COLORS[1])
    right.legend(fontsize=8, loc="upper left")
    axes.grid(True, alpha=0.2)
