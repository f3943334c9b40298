"""Results for a reader: rows of a document as tables, numbers with units."""

from collections.abc import Callable, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
Column = tuple[str, Callable[[dict], Any]]


def si(value: float, unit: str) -> str:
    """3470000000000.0, "B/s" -> "3.47 TB/s": three digits and a decimal prefix."""
    for size, prefix in PREFIXES:
        if value >= size:
            return f"{_three(value / size)} {prefix}{unit}"
    return f"{_three(value)} {unit}"


def _three(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _of(rate: float, unit: str, part: float) -> str:
    return f"{si(rate, unit)} {part * 100:3.0f}%"


def _percent(name: str) -> Callable[[dict], str]:
    return lambda row: f"{row[name] * 100:.0f}%"


def _time(name: str) -> Callable[[dict], str]:
    return lambda row: f"{row[name]:,.1f}" if row[name] >= 100 else f"{row[name]:.3g}"


def _count(name: str) -> Callable[[dict], str]:
    return lambda row: f"{row[name]:,.0f}"


def _points(name: str) -> Callable[[dict], str]:
    """Median, 90th and 99th percentile."""

    def read(row: dict) -> str:
        found = row[f"{name}_ms"]
        points = ("p50", "p90", "p99")
        return "-" if found is None else " ".join(_three(found[point]) for point in points)

    return read


def _goodput(row: dict) -> str:
    good = row["goodput"]
    return "" if good is None else f"{good['requests_per_s']:.3g}/s {good['share'] * 100:.0f}%"


def _hits(row: dict) -> str:
    rate = row["prefix_hit_rate"]
    return "" if rate is None else f"{rate * 100:.0f}%"


def _load(row: dict) -> str:
    return f"{row['concurrency']:,} at once" if row["rate"] is None else f"{row['rate']:g}/s"


MODEL: tuple[Column, ...] = (
    ("weights", lambda row: row["quantize"] or row["dtype"]),
    ("KV", lambda row: row["kv_dtype"] or ""),
)
SHAPE: tuple[Column, ...] = (
    *MODEL,
    ("batch", _count("batch")),
    ("context", _count("context")),
)
RATES: tuple[Column, ...] = (
    ("±", lambda row: f"{row['spread'] * 100:.0f}%"),
    ("tok/s", _count("tokens_per_s")),
    ("read, of ceiling", lambda row: _of(row["bytes_per_s"], "B/s", row["of_read_ceiling"])),
    (
        "computed, of ceiling",
        lambda row: _of(row["flop_per_s"], "FLOP/s", row["of_matmul_ceiling"]),
    ),
    ("floor ms", _time("floor_ms")),
    ("of floor", _percent("of_floor")),
)
COLUMNS: dict[str, tuple[Column, ...]] = {
    "decode": (
        *SHAPE,
        ("ms/step", _time("step_ms")),
        *RATES,
        ("wall ms", lambda row: _time("wall_ms")(row) if "wall_ms" in row else ""),
        ("host", lambda row: f"x{row['host_overhead']:.2f}" if "wall_ms" in row else ""),
    ),
    "prefill": (*SHAPE, ("chunk", _count("chunk")), ("TTFT ms", _time("ttft_ms")), *RATES),
    "throughput": (
        *MODEL,
        ("requests", _count("requests")),
        ("slots", _count("slots")),
        ("in", _count("input_tokens")),
        ("out", _count("output_tokens")),
        ("seconds", _time("seconds")),
        ("±", lambda row: f"{row['spread'] * 100:.0f}%"),
        ("out tok/s", _count("output_tokens_per_s")),
        ("all tok/s", _count("total_tokens_per_s")),
        ("floor s", _time("floor_s")),
        ("of floor", _percent("of_floor")),
    ),
    "startup": (
        *MODEL,
        ("cache", lambda row: row["cache"]),
        ("python", _time("interpreter_s")),
        ("import", _time("import_s")),
        ("device", _time("device_s")),
        ("load", _time("load_s")),
        ("trace", _time("trace_s")),
        ("compile", _time("compile_s")),
        ("run", _time("run_s")),
        ("first token s", _time("first_token_s")),
        ("±", lambda row: f"{row['spread'] * 100:.0f}%"),
        ("next one", _time("next_first_token_s")),
    ),
    "serve": (
        ("load", _load),
        ("answered", lambda row: f"{row['completed']:,} of {row['requests']:,}"),
        ("req/s", lambda row: f"{row['requests_per_s']:.3g}"),
        ("out tok/s", _count("output_tokens_per_s")),
        ("TTFT ms: p50 p90 p99", _points("ttft")),
        ("TPOT ms", _points("tpot")),
        ("ITL ms", _points("itl")),
        ("whole ms", _points("e2e")),
        ("goodput", _goodput),
        ("prefix hits", _hits),
    ),
}
LEFT = ("weights", "KV", "cache", "load", "kernel", "place in the model")


def results(kind: str, rows: Sequence[dict]) -> Table:
    """One line a row; what could not be measured says why."""
    columns = COLUMNS[kind]
    table = _table([name for name, _ in columns])
    for row in rows:
        if "error" in row:
            known = [
                read(row) for name, read in columns if name in ("weights", "KV", "batch", "context")
            ]
            table.add_row(*known, row["error"].split(":")[0], style="dim")
        else:
            table.add_row(*(str(read(row)) for _, read in columns))
    return table


def kernels(row: dict) -> Table:
    """Where the time of one row went."""
    names = ("kernel", "place in the model", "launches/step", "us/step", "share")
    table = _table([*names, "per launch", "read+written", "of read"])
    for kernel in row["kernels"]:
        known = kernel["bytes_per_s"] is not None
        table.add_row(
            kernel["name"],
            kernel["scope"],
            f"{kernel['launches_per_step']:,.4g}",
            f"{kernel['us_per_step']:,.1f}",
            f"{kernel['share'] * 100:.1f}%",
            si(kernel["bytes"], "B") if known else "",
            si(kernel["bytes_per_s"], "B/s") if known else "",
            f"{kernel['of_read_ceiling'] * 100:.0f}%" if known else "",
        )
    return table


def _table(names: Sequence[str]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in names:
        table.add_column(name, justify="left" if name in LEFT else "right", no_wrap=True)
    return table


def ceilings(found: dict) -> str:
    """One line: what this machine reaches."""
    words = [f"{what} {si(found[f'{what}_bytes_per_s'], 'B/s')}" for what in ("copy", "read")]
    words += [
        f"{name} {si(rate, 'op/s' if name.startswith('int') else 'FLOP/s')}"
        for name, rate in found["matmul_flop_per_s"].items()
    ]
    return "ceilings measured here: " + ", ".join(words)
