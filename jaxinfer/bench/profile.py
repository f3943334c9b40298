"""A trace of the device, read back into a table of time by kernel.

The profiler's file holds every kernel that ran. Each is matched to the instruction of the compiled
program that it came from, which says where in the model it is and how many bytes it moves.
"""

import dataclasses
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
from jax.profiler import ProfileData

from jaxinfer.bench.hlo import Program

IDLE = "(no kernel runs)"
LIBRARY = re.compile("nvjet|cutlass|gemm|gemv")  # in the names of cuBLAS's kernels
HOLDERS = ("call", "while", "conditional")  # instructions that only hold others
OTHERS = "(others)"
SHOWN = 40  # kinds of kernels that a result keeps


@dataclass(frozen=True)
class Launch:
    """One execution on the device. start, end: nanoseconds; self_ns: without what ran inside it.

    op: the instruction it belongs to, "" where the trace does not say.
    """

    name: str
    op: str
    start: float
    end: float
    self_ns: float


@dataclass(frozen=True)
class Kernel:
    """Launches of one kind. us: in all; bytes: of one launch, None where unknown.

    scope: the place in the model, layers taken together.
    """

    name: str
    scope: str
    count: int
    us: float
    share: float
    bytes: int | None = None
    bytes_per_s: float | None = None
    of_read_ceiling: float | None = None


def kernels(
    folder: Path,
    run: Callable[[], object],
    programs: Iterable[str],
    read_ceiling: float,
    *,
    seconds: float,
    steps: int,
) -> list[dict]:
    """Trace `run` into `folder` and describe where its time went, ready for JSON: as `Kernel`, with
    the time and launches of one of `steps` steps.

    programs: the compiled texts. seconds: what `run` takes without a profiler. Beyond SHOWN kinds the rest is one row.
    """
    found = launches(trace(folder, run))
    rows = table(
        found, [Program(text) for text in programs], read_ceiling, seconds=seconds, runs=steps
    )
    rest = rows[SHOWN:]
    if rest:
        count, us, share = (
            sum(getattr(row, name) for row in rest) for name in ("count", "us", "share")
        )
        rows = [*rows[:SHOWN], Kernel(OTHERS, "", count, us, share)]
    return [
        {
            **dataclasses.asdict(row),
            "us_per_step": row.us / steps,
            "launches_per_step": row.count / steps,
        }
        for row in rows
    ]


def trace(folder: Path, run: Callable[[], object]) -> Path:
    """Run once under the profiler, device only; returns the file it left in `folder`."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with jax.profiler.trace(str(folder), profiler_options=options):
        jax.block_until_ready(run())
    found = sorted(folder.glob("**/*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise RuntimeError(f"the profiler left no trace in {folder}; run without --profile")
    return found[-1]


def launches(path: Path) -> list[Launch]:
    """What ran on the device (of several: the first) in a trace file."""
    data = ProfileData.from_file(str(path))
    planes = {plane.name: list(plane.lines) for plane in data.planes}
    devices = sorted(name for name in planes if name.startswith("/device:"))
    devices = [name for name in devices if _device_lines(planes[name])]
    lines = _device_lines(planes[devices[0]]) if devices else planes.get("/host:CPU", [])
    found = []
    for line in lines:
        events = [_event(event, needs_op=not devices) for event in line.events]
        found += _without_inner([event for event in events if event is not None])
    return sorted(found, key=lambda launch: launch.start)


def _device_lines(lines):
    """The lines of a plane that hold kernels: a GPU's streams, a TPU's operations."""
    return [line for line in lines if line.name.startswith("Stream") or line.name == "XLA Ops"]


def _event(event, needs_op: bool) -> Launch | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the binding's own types
        stats = {key: value for key, value in event.stats if key == "hlo_op"}
    op = str(stats.get("hlo_op", ""))
    if needs_op and not op:
        return None
    end = event.start_ns + event.duration_ns
    return Launch(event.name, op, event.start_ns, end, event.duration_ns)


def _without_inner(events: list[Launch]) -> list[Launch]:
    """Events of one line with their own time: without what ran inside them, and without the moments
    that a GPU lets a kernel begin before the one ahead has ended, which count for the earlier.
    """
    done: list[Launch] = []
    open_: list[tuple[Launch, float]] = []  # an event that may still hold others, and its own time

    for event in sorted(events, key=lambda event: (event.start, -event.end)):
        while open_ and open_[-1][0].end < event.end:
            done.append(_own(*open_.pop()))
        reached = max((one.end for one in done[-1:]), default=event.start)
        own = max(0.0, event.end - max(event.start, reached))
        if open_:
            outer, left = open_[-1]
            open_[-1] = outer, max(0.0, left - own)
        open_.append((event, own))
    return done + [_own(*one) for one in open_]


def _own(event: Launch, ns: float) -> Launch:
    return dataclasses.replace(event, self_ns=ns)


def table(
    found: Sequence[Launch],
    programs: Iterable[Program],
    read_ceiling: float,
    *,
    seconds: float,
    runs: int = 1,
) -> list[Kernel]:
    """Launches by kind (name without numbers, place in the model, bytes), longest first.

    read_ceiling: bytes per second. seconds: what the same work takes when nobody looks, of which the
    shares are; what no kernel accounts for is a row of its own. runs: how often the programs' loops
    went round, by which calls of libraries are told apart.
    """
    if not found:
        raise ValueError("a table of kernels needs a trace with device work, got none")
    programs = list(programs)
    counts = Counter(launch.name for launch in found)
    groups: dict[tuple[str, str, int | None], list[float]] = {}
    for launch in found:
        scope, moved = _origin(launch, programs, counts[launch.name] / runs)
        key = (re.sub(r"[._]\d+(?=$|[._])", "", launch.name), scope, moved)
        groups.setdefault(key, []).append(launch.self_ns)
    total = max(seconds * 1e9, _busy(found))
    idle = total - _busy(found)
    kernels = []
    for (name, scope, moved), times in groups.items():
        spent = sum(times)
        rate = None if moved is None or spent == 0 else moved * len(times) / (spent / 1e9)
        part = None if rate is None else rate / read_ceiling
        kernels.append(
            Kernel(name, scope, len(times), spent / 1e3, spent / total, moved, rate, part)
        )
    kernels.append(Kernel(IDLE, "", 0, idle / 1e3, idle / total))
    return sorted(kernels, key=lambda kernel: -kernel.us)


def _origin(launch: Launch, programs: list[Program], per_run: float) -> tuple[str, int | None]:
    """(place in the model, bytes of a launch), or ("", None) where no program knows it.

    A library's kernel has a name of its own: it belongs to the only calls of which there are as many.
    """
    for program in programs:
        instruction = program.find(launch.op or launch.name) or program.find(launch.name)
        if instruction is not None and instruction.opcode not in HOLDERS:
            found = instruction.name
            return place(program.scope_of(found)), program.bytes_of(found)
    for program in programs:
        calls: dict[tuple[str, int | None], int] = {}
        for (scope, moved), count in program.library_calls().items():
            key = (place(scope), moved)
            calls[key] = calls.get(key, 0) + count
        same = [key for key, count in calls.items() if count == per_run]
        if len(same) == 1 and LIBRARY.search(launch.name):
            return same[0]
    return "", None


def _busy(found: Sequence[Launch]) -> float:
    """Nanoseconds in which at least one launch ran."""
    busy, reached = 0.0, found[0].start
    for launch in found:  # in the order of their starts
        busy += max(0.0, launch.end - max(reached, launch.start))
        reached = max(reached, launch.end)
    return busy


def place(scope: str) -> str:
    """jit(decode_loop)/while/body/layer_3/attention/dot_general -> layer/attention/dot_general."""
    scope = scope.split(";")[-1]
    kept = [part for part in scope.split("/") if part not in ("while", "body", "closed_call")]
    kept = [re.sub(r"^layer_\d+$", "layer", part) for part in kept if not part.startswith("jit(")]
    return "/".join(part for part in kept if part != "vmap()")
