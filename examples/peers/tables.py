"""Rows of a comparison for a reader, and their ratios."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from examples.peers.engines import PEERS

WHAT = ("decode", "prefill")


def case_of(row: dict) -> tuple[int, int]:
    return row["batch"], row["context"]


def ratios(rows: Sequence[dict]) -> list[dict]:
    """Our best variant against each peer's best, and plain against plain where both have the same:
    above 1 means jaxinfer is faster.
    """
    found = []
    measured = [row for row in rows if "error" not in row]
    for case in dict.fromkeys(map(case_of, measured)):
        for what in WHAT:
            rate = {r["peer"]: r[f"{what}_tok_s"]["median"] for r in measured if case_of(r) == case}
            for peer in PEERS:
                if peer != "jaxinfer":
                    found += [
                        {"what": what, "batch": case[0], "context": case[1], **pair}
                        for pair in _pairs(rate, peer)
                    ]
    return found


def _pairs(rate: dict[str, float], peer: str) -> list[dict]:
    ours, theirs = ([name for name in rate if name.split()[0] == one] for one in ("jaxinfer", peer))
    if not ours or not theirs:
        return []
    pairs = [(max(ours, key=rate.__getitem__), max(theirs, key=rate.__getitem__))]
    pairs += [
        (f"jaxinfer {dtype}", f"{peer} {dtype}")
        for dtype in ("f32", "bf16")
        if f"jaxinfer {dtype}" in ours and f"{peer} {dtype}" in theirs
    ]
    return [
        {"ours": a, "theirs": b, "ratio": round(rate[a] / rate[b], 3)}
        for a, b in dict.fromkeys(pairs)
    ]


def show(console: Console, model: str, rows: Sequence[dict], compared: Sequence[dict]) -> None:
    """Two tables, tokens per second (median, spread) of decode and prefill, and the ratios."""
    cases = list(dict.fromkeys(map(case_of, rows)))
    for what in WHAT:
        table = Table(
            "engine",
            *(f"batch {b}, context {c}" for b, c in cases),
            title=f"{model}: {what}, tokens/s",
        )
        for name in dict.fromkeys(row["peer"] for row in rows):
            mine = {case_of(row): row for row in rows if row["peer"] == name}
            table.add_row(name, *(_cell(mine.get(case), what) for case in cases))
        console.print(table)
    table = Table(
        "what", "batch", "context", "ours", "theirs", "ratio", title=f"{model}: ours / theirs"
    )
    for row in compared:
        names = ("what", "batch", "context", "ours", "theirs", "ratio")
        table.add_row(*(str(row[name]) for name in names))
    console.print(table)


def _cell(row: dict | None, what: str) -> str:
    if row is None:
        return ""
    if "error" in row:
        return row["error"].splitlines()[-1][:60]
    found = row[f"{what}_tok_s"]
    return f"{found['median']:.1f} ({found['least']:.1f} .. {found['most']:.1f})"
