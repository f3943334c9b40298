"""The roofline as a picture: what a chip allows at every arithmetic intensity, and where a model lies.

matplotlib is an extra, and slow to import: it is looked for when a picture is wanted.
"""

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxinfer.roofline.bounds import Bound, attainable
from jaxinfer.roofline.formats import Format
from jaxinfer.roofline.plan import Row
from jaxinfer.roofline.work import Work

SERIES = {  # parts that lie together; colours of Okabe and Ito, told apart by the colour-blind
    "products with weights": ("#009e73", ("attention projections", "mlp")),
    "attention": ("#d55e00", ("attention",)),
    "whole step": ("#000000", ()),
}
ENDINGS = (".png", ".svg", ".pdf")
MOST_LABELS = 4  # batch sizes that are written beside their points
TERA = 1e12


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


def draw(rows: Sequence[Row], stored: Format, title: str, path: Path) -> None:
    """Write the picture: decode at every batch size of `rows`, and prefill, on the chip's roof."""
    figure = importlib.import_module("matplotlib.figure").Figure(
        figsize=(11, 6.2), layout="constrained"
    )
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _roof(left, rows, stored)
    _frontier(right, rows)
    figure.suptitle(title, fontsize=12)
    figure.savefig(path, dpi=140)


def _points(bound: Bound) -> dict[str, tuple[float, float]]:
    """Per series its intensity (FLOPs per byte that must be read) and the TFLOP/s it can reach."""
    found = {}
    for name, (_, parts) in SERIES.items():
        work = sum((bound.parts[part] for part in parts), Work()) if parts else bound.work
        seconds = sum(bound.part_s[part] for part in parts) if parts else bound.latency_s
        found[name] = (work.flops / work.least_bytes, work.flops / seconds / TERA)
    return found


def _roof(axes: Any, rows: Sequence[Row], stored: Format) -> None:
    chip = rows[0].decode.chip
    decodes = [_points(row.decode) for row in rows]
    prefills = _points(rows[0].prefill)
    peak, ridge = chip.peak(stored.compute), chip.peak(stored.compute) / chip.bandwidth
    reached = [x for points in (*decodes, prefills) for x, _ in points.values()]
    low, high = min(0.5, *reached) / 2, max(4 * ridge, *reached) * 3
    axes.plot(
        [low, ridge, high],
        [attainable(chip, x, stored.compute) / TERA for x in (low, ridge, high)],
        color="#888888",
        linewidth=2.5,
        zorder=1,
    )
    axes.axvline(ridge, color="#cccccc", linestyle=":", zorder=0)
    axes.annotate(
        f"{peak / TERA:,.0f} TFLOP/s, {stored.compute}",
        (high, peak / TERA),
        xytext=(-4, 9),
        textcoords="offset points",
        ha="right",
        color="#555555",
        fontsize=9,
    )
    axes.annotate(
        f"memory-bound left, compute-bound right of {ridge:,.0f}",
        (ridge, 0),
        xycoords=("data", "axes fraction"),
        xytext=(12, 8),
        textcoords="offset points",
        rotation=90,
        ha="right",
        va="bottom",
        color="#777777",
        fontsize=8,
    )
    for name, (color, _) in SERIES.items():
        edge = dict(markeredgecolor="white", markeredgewidth=0.8, zorder=4 - (name == "attention"))
        x, y = zip(*(points[name] for points in decodes), strict=True)
        axes.plot(x, y, "o", markersize=9, color=color, label=f"decode: {name}", **edge)
        axes.plot(*prefills[name], "s", markersize=9, color=color, **edge)
    label = f"prefill of {rows[0].prefill.tokens // rows[0].batch:,} tokens, the same"
    axes.plot([], [], "s", color="#555555", label=label)
    for i in _some(range(len(rows))):
        for name, at in (("whole step", (9, -11)), ("products with weights", (-9, 6))):
            axes.annotate(
                f"batch {rows[i].batch}",
                decodes[i][name],
                xytext=at,
                textcoords="offset points",
                ha="left" if at[0] > 0 else "right",
                color=SERIES[name][0],
                fontsize=8,
            )
    axes.set(
        xscale="log",
        yscale="log",
        xlim=(low, high),
        ylim=(attainable(chip, low, stored.compute) / TERA, 3 * peak / TERA),
        xlabel="FLOPs per byte of weights and cache",
        ylabel="attainable TFLOP/s of one chip",
        title=f"roofline of {chip.name}: {chip.bandwidth / 1e9:,.0f} GB/s",
    )
    axes.legend(fontsize=9, loc="upper left", frameon=False)
    _plain(axes)


def _frontier(axes: Any, rows: Sequence[Row]) -> None:
    """Latency against throughput, what does not fit hollow."""
    x = [row.decode.latency_s * 1e3 for row in rows]
    y = [row.decode.throughput_tok_s for row in rows]
    axes.plot(x, y, "-", color="#0072b2", zorder=2)
    for label, fits, face in (("fits", True, "#0072b2"), ("does not fit", False, "white")):
        chosen = [i for i, row in enumerate(rows) if row.fits == fits]
        if chosen:
            axes.plot(
                [x[i] for i in chosen],
                [y[i] for i in chosen],
                "o",
                color="#0072b2",
                markerfacecolor=face,
                label=label,
                zorder=3,
            )
    for i in _some(range(len(rows))):
        axes.annotate(
            f"batch {rows[i].batch}",
            (x[i], y[i]),
            xytext=(7, -11),
            textcoords="offset points",
            fontsize=8,
        )
    axes.set(
        xlim=(0, 1.25 * max(x)),
        yscale="log" if max(y) > 20 * min(y) else "linear",
        xlabel="ms per token of a sequence, at least",
        ylabel="tokens/s of the batch, at most",
        title="latency and throughput",
    )
    axes.legend(fontsize=8, loc="lower right", frameon=False)
    _plain(axes)


def _plain(axes: Any) -> None:
    """A faint grid, and numbers written out."""
    ticker = importlib.import_module("matplotlib.ticker")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,.5g}"))
        if axis.get_scale() == "log":
            axis.set_minor_formatter(ticker.NullFormatter())
    axes.grid(which="major", color="#eeeeee")
    axes.set_axisbelow(True)


def _some(indices: range) -> list[int]:
    """The first, the last, and evenly some between."""
    if len(indices) <= MOST_LABELS:
        return list(indices)
    step = (len(indices) - 1) / (MOST_LABELS - 1)
    return sorted({round(i * step) for i in range(MOST_LABELS)})
