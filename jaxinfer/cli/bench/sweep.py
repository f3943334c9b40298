"""The way of every measurement: check, measure ceilings and cases, keep, show."""

import contextlib
import gc
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from absl.flags import FlagValues
from rich.console import Console

from jaxinfer import compile_cache
from jaxinfer.bench import ceilings, environment, history, plots, subject, tables
from jaxinfer.cli import output
from jaxinfer.cli.bench.lists import PLAIN, methods

Say = Callable[[str], None]
WIDEST = 160  # columns of the widest table
SHOWING = ("json", "output", "plot", "traceback")  # flags that change nothing but what is shown


def check(values: FlagValues, longest: int | None) -> None:
    """ValueError for what can be known to be wrong before anything is measured."""
    methods(values.quantize)
    if values.repeats < 1:
        raise ValueError(f"--repeats needs to be at least 1, got {values.repeats}")
    if "plot" in values and values.plot is not None:
        plots.check(Path(values.plot))
    if values.output is not None:
        Path(values.output).mkdir(parents=True, exist_ok=True)
    name, config = subject.find_config(values.model, values.weights)
    if longest is not None and longest > config.max_position:
        raise ValueError(
            f"{name} has {config.max_position:,} positions, got a context of {longest:,}; "
            "give a shorter one"
        )


def sweep(values: FlagValues, kind: str, cases: Sequence[tuple], one: Callable) -> None:
    """Measure the ceilings and every case with every kind of weights; show what came out."""
    compile_cache.enable(values.compile_cache)
    rows: list[dict] = []
    with progress() as say, contextlib.ExitStack() as stack:
        found = ceilings.measure_ceilings(progress=lambda what: say(f"ceiling: {what}"))
        head = environment.describe(f"bench {kind}", argv(values, kind), environment.hardware())
        folder = None
        if "profile" in values and values.profile:
            root = values.output or stack.enter_context(tempfile.TemporaryDirectory())
            folder = Path(root) / f"trace-{re.sub('[-:]', '', head['date'])}"
        for method in methods(values.quantize):
            name = method or values.dtype or "weights as stored"
            say(f"{name}: preparing the model")
            held, failed = _attempt(lambda m=method: _held(values, m))
            asked = {"quantize": method, "dtype": values.dtype, "kv_dtype": values.kv_dtype}
            about = asked if held is None else held.describe()
            for case, shape in cases:
                words = ", ".join(f"{key} {value:,}" for key, value in shape.items())
                say(f"{name}: {words}")
                row = None
                if held is not None:
                    own = folder and folder / (method or PLAIN)
                    row, failed = _attempt(lambda c=case, h=held, f=own: one(h, c, found, f))
                rows.append(row or {**about, **shape, "error": failed})
    show(values, kind, {**head, "ceilings": found.describe(), "rows": rows})


def _held(values: FlagValues, method: str | None) -> subject.Subject:
    return subject.prepare(
        values.model,
        source=values.weights,
        dtype=values.dtype,
        quantize=method,
        kv_dtype=values.kv_dtype,
    )


def _attempt(measure: Callable[[], Any]) -> tuple[Any, str]:
    """(what `measure` returns, ""), or (None, what to say) where memory ran out."""
    try:
        return measure(), ""
    except (RuntimeError, MemoryError) as error:
        words = " ".join(str(error).split())[:200]
        scarce = re.search(r"RESOURCE_EXHAUSTED|out of memory", words, re.IGNORECASE)
        if not scarce and not isinstance(error, MemoryError):
            raise
    gc.collect()  # the buffers that the failure's frames held
    return None, f"out of memory: {words}"


@contextlib.contextmanager
def progress() -> Iterator[Say]:
    """A function that says on stderr what is under way: in one line of a terminal, else a line each."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield output.note
        return
    with console.status("") as status:
        yield lambda what: status.update(what)


def argv(values: FlagValues, kind: str) -> list[str]:
    """The command line again, from the flags that were given and that change what is measured."""
    given = {name: values[name].value for name in values if values[name].present}
    words = [
        f"--{name}" if value is True else f"--{name}={value}"
        for name, value in given.items()
        if name not in SHOWING
    ]
    return ["bench", kind, *words]


def show(values: FlagValues, kind: str, document: dict) -> None:
    if values.output is not None:
        path = history.save(Path(values.output), document)
        output.note(f"wrote {path}")
    measured = [row for row in document["rows"] if "error" not in row]
    if "plot" in values and values.plot is not None and measured:
        plots.draw(document, Path(values.plot))
        output.note(f"wrote {values.plot}")
    if not values.json:
        _print(kind, document)
    output.write_json(document)


def _print(kind: str, document: dict) -> None:
    console = Console(file=sys.stdout, highlight=False)
    console.width = max(
        console.width, WIDEST
    )  # a table that is cut is worth less than one that wraps
    machine, rows = document["hardware"], document["rows"]
    names = {row["model"] for row in rows if "model" in row}
    console.print(f"bench {kind}: {', '.join(sorted(names))} on {machine['device']}")
    if document["ceilings"] is not None:
        console.print(tables.ceilings(document["ceilings"]))
    console.print(tables.results(kind, rows))
    for row in rows:
        if "kernels" in row:
            what = f"{row['quantize'] or row['dtype']}, batch {row['batch']:,}"
            console.print(f"where the time goes: {what}, context {row['context']:,}")
            console.print(tables.kernels(row))
