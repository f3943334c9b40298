"""What jaxinfer plan shows: its rows for JSON, and the same as tables for people."""

import dataclasses
import sys
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from jaxinfer import topology
from jaxinfer.cli import output
from jaxinfer.roofline.chips import Chip
from jaxinfer.roofline.plan import Row

WIDTH = 100
SUFFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def row(row: Row) -> dict:
    """One batch size, ready for JSON; bytes are those of one device."""
    step, memory = row.decode, row.memory
    return {
        "batch": row.batch,
        "memory_bytes": memory.total,
        "weight_bytes": memory.weights,
        "cache_bytes": memory.cache,
        "workspace_bytes": memory.workspace,
        "fits": row.fits,
        "missing_bytes": max(memory.total - step.chip.room, 0.0),
        "ttft_s": row.prefill.latency_s,
        "latency_s": step.latency_s,
        "throughput_tok_s": step.throughput_tok_s,
        "limited_by": step.limited_by,
        "prefill_limited_by": row.prefill.limited_by,
        "sequential_latency_s": step.sequential_s,
        "memory_s": step.memory_s,
        "compute_s": step.compute_s,
        "interconnect_s": step.interconnect_s,
        "parts": {name: dataclasses.asdict(part) for name, part in step.parts.items()},
        "lecture": dataclasses.asdict(row.lecture),
    }


def compiled(
    request: topology.Request, done: Sequence[topology.Compiled], row: Row, chip: Chip
) -> dict:
    """What the compiler found, beside the estimate; ready for JSON."""
    programs = [{**dataclasses.asdict(one), "total": one.total} for one in done]
    held = next((one["arguments"] for one in programs if one["program"] == "decode"), 0)
    for one in programs:  # prefill runs beside the whole cache, of which it is given one row a copy
        one["peak_bytes"] = held + one["temporaries"]
    works = all(one["error"] is None for one in programs)
    return {
        "topology": f"{request.chip}:{request.shape}",
        "mesh": {"data": request.data, "model": request.model},
        "batch": request.batch,
        "context": request.context,
        "chunk": request.chunk,
        "fits": works and max(one["peak_bytes"] for one in programs) <= chip.room,
        "memory_limit_bytes": chip.room,
        "estimated_arguments": row.memory.weights + row.memory.cache,
        "estimated_workspace": row.memory.workspace,
        "estimated_collectives": row.decode.collectives,
        "programs": programs,
    }


def gb(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 5e7 else f"{count / 1e6:,.2f} MB"


def _ms(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:,.2f} s"
    digits = 0 if seconds >= 0.1 else 2 if seconds >= 1e-3 else 3
    return f"{seconds * 1e3:.{digits}f} ms"


def _rate(count: float, unit: str) -> str:
    for factor, prefix in SUFFIXES:
        if count >= factor:
            digits = 0 if count >= 100 * factor else 2
            return f"{count / factor:,.{digits}f} {prefix}{unit}"
    return f"{count:,.3g} {unit}"


def show(found: dict) -> None:
    """The plan."""
    unit, mesh = found["unit"], found["mesh"]
    limits = "; ".join(
        (
            f"{gb(found['memory_limit_bytes'])} a {unit}",
            _rate(found["bandwidth"], "B/s"),
            _rate(found["peak"], "FLOP/s"),
        )
    )
    count = f"{found['chips']} x " if found["chips"] > 1 else ""
    shown = {
        "model": f"{found['model']}, {found['parameters']:,} parameters, {found['weights']} weights",
        "machine": f"{count}{found['chip']}: {limits}",
        "mesh": f"data={mesh['data']},model={mesh['model']}"
        + (" (proposed)" if found["mesh_proposed"] else ""),
        "sequence": f"{found['context']:,} tokens; prompt {found['prompt']:,}; cache "
        f"{found['kv_bytes_per_token'] / 1e3:,.1f} kB a token ({found['kv_cache']})",
        "first token": f"of one prompt alone after {_ms(found['ttft_one_prompt_s'])} at least",
        "largest batch": f"{found['largest_batch']:,} that fits"
        if found["largest_batch"]
        else "none fits",
        "compute-bound": _critical(found),
        "source": found["source"],
    }
    output.table(shown)
    table = _table("batch", f"memory a {unit}", "fits", "TTFT", "per token", "tok/s", "tok/s each")
    for name in ("limit", "textbook"):
        table.add_column(name, justify="right" if name == "textbook" else "left", no_wrap=True)
    for row in found["rows"]:
        table.add_row(
            f"{row['batch']:,}",
            gb(row["memory_bytes"]),
            "yes" if row["fits"] else "no",
            _ms(row["ttft_s"]),
            _ms(row["latency_s"]),
            f"{row['throughput_tok_s']:,.0f}",
            f"{1 / row['latency_s']:,.1f}",
            row["limited_by"],
            _ms(row["lecture"]["latency_s"]),
            style=None if row["fits"] else "dim",
        )
    _print(table)
    output.write(
        "Floors: nothing is faster on this machine. TTFT: all prompts of the batch at once. textbook: time "
        "per\ntoken if every parameter is read, input embedding included, and all chips share all bytes.\n"
    )
    _warn(found)
    if "what_if" in found:
        _what_if(found["what_if"], unit)


def _critical(found: dict) -> str:
    bare, here = found["critical_batch_without_cache"], found["critical_batch"]
    if here is not None:
        return f"from batch {here:,} a copy of the model"
    words = "never at this context: reading the cache takes longer than computing"
    return words if bare is None else f"{words} (from batch {bare:,} with short ones)"


def _warn(found: dict) -> None:
    """What does not fit, by how much, and what would; what else may surprise."""
    unit, large = found["unit"], [row for row in found["rows"] if not row["fits"]]
    lines = []
    if large:
        row = large[0]
        lines.append(
            f"Batch {row['batch']:,} does not fit: it needs {gb(row['memory_bytes'])} a {unit} "
            f"(weights {gb(row['weight_bytes'])}, cache {gb(row['cache_bytes'])}), "
            f"{gb(row['missing_bytes'])} more than there is."
        )
        would = found["remedies"]
        lines.append(
            f"It would fit with {', or '.join(would)}."
            if would
            else "Try a smaller batch or context, or a larger chip."
        )
    if found["context"] > found["max_position"]:
        lines.append(f"The model was made for at most {found['max_position']:,} tokens.")
    tight = [row for row in found["rows"] if row["fits"]]
    share = max((row["memory_bytes"] for row in tight), default=0) / found["memory_limit_bytes"]
    if found["source"].startswith("NVIDIA") and share > 0.75:
        lines.append(
            "JAX takes 75% of a GPU's memory unless XLA_PYTHON_CLIENT_MEM_FRACTION is set higher."
        )
    if lines:
        output.write("\n" + "\n".join(lines) + "\n")


def _what_if(found: dict, unit: str) -> None:
    table = _table(
        f"what if, batch {found['batch']:,}", f"memory a {unit}", "per token", "tok/s", "speed"
    )
    base = found["rows"][0]["latency_s"]
    for row in found["rows"]:
        table.add_row(
            row["name"],
            gb(row["memory_bytes"]),
            _ms(row["latency_s"]),
            f"{row['throughput_tok_s']:,.0f}",
            f"{base / row['latency_s']:.2f}x",
        )
    _print(table)


def show_compiled(found: dict, unit: str) -> None:
    """What the compiler says, beside the estimate."""
    table = _table(
        f"compiled for {found['topology']}",
        "weights, cache",
        "temporaries",
        f"peak a {unit}",
        "took",
    )
    table.add_column("collectives")
    table.add_row(
        "estimate",
        gb(found["estimated_arguments"]),
        gb(found["estimated_workspace"]),
        gb(found["estimated_arguments"] + found["estimated_workspace"]),
        "",
        f"{found['estimated_collectives']} all-reduce"
        if found["estimated_collectives"]
        else "none",
    )
    for one in found["programs"]:
        if one["error"] is not None:
            continue
        kinds = [f"{n} {kind}" for kind, n in one["collectives"].items() if n]
        counted = "\n".join(kinds) or "none"
        held = one["program"] == "decode"
        table.add_row(
            f"decode, batch {found['batch']:,}"
            if held
            else f"prefill of {found['chunk']:,} tokens",
            gb(one["arguments"]) if held else "as above",
            gb(one["temporaries"]),
            gb(one["peak_bytes"]),
            f"{one['seconds']:.0f} s",
            counted if one["collectives"] else "not counted",
        )
    _print(table)
    for one in found["programs"]:
        if one["error"] is not None:
            output.write(f"The compiler refuses {one['program']}: {one['error']}\n")
    words = "It compiles and fits" if found["fits"] else "It does not fit"
    output.write(f"{words}: {gb(found['memory_limit_bytes'])} a {unit} for programs.\n")


def _table(first: str, *rest: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column(first, no_wrap=True, justify="right" if first == "batch" else "left")
    for name in rest:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _print(table: Table) -> None:
    console = Console(file=sys.stdout, highlight=False)
    if not console.is_terminal or console.width < WIDTH:
        console.width = WIDTH
    console.print()
    console.print(table)
    console.print()
