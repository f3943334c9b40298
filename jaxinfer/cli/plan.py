"""jaxinfer plan: does a model fit on some chips, over which mesh, and how fast can it be."""

import dataclasses
import math
import sys
from pathlib import Path
from typing import Any

from absl.flags import FlagValues
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from jaxinfer import shipped, topology, weights
from jaxinfer.bench.ceilings import measure_ceilings
from jaxinfer.cli import output, plan_tables
from jaxinfer.cli.flags import COUNTS, INTEGER, Command, Flags
from jaxinfer.config import ModelConfig
from jaxinfer.models import decoder, presets
from jaxinfer.roofline import FORMATS, critical_batch, formats, plan, plot, what_if
from jaxinfer.roofline.bounds import Mesh
from jaxinfer.roofline.memory import cache_bytes
from jaxinfer.sharding import mesh_axes

QUANTIZE = ("int8", "w8a8", "fp8", "int4")
HERE = "here"
DTYPES = ("bfloat16", "float32")
CACHES = ("bfloat16", "int8", "fp8", "float32")


def define(flags: Flags) -> None:
    flags.group("Model")
    flags.text(
        "model",
        "a name like llama-3.1-70b, a folder, or a Hugging Face hub id (its config.json alone is read); "
        "without it, the model that ships with jaxinfer",
        form="NAME|FOLDER|ORG/NAME",
    )
    flags.choice("dtype", "of weights that are not quantized", DTYPES, "bfloat16")
    flags.choice("quantize", "weights of fewer bits than bfloat16", QUANTIZE)
    flags.choice("kv_dtype", "how keys and values are kept", CACHES, "bfloat16")
    flags.group("Machine")
    flags.text(
        "chip",
        f"one chip: {', '.join(plan.CHIPS)}; or {HERE}, this machine's first device, measured",
        form="CHIP",
    )
    flags.text(
        "topology",
        "several chips: a TPU slice, like v5e:2x4, or GPUs of one machine, like h100:8",
        form="CHIP:SHAPE",
    )
    flags.text("mesh", "like data=2,model=4; without it the best one is proposed", form="AXES")
    flags.group("Work")
    flags.one("batch", COUNTS, "how many sequences at once", "1,4,16,64,256", "1,16,64")
    flags.one("context", INTEGER, "tokens of each sequence, prompt and answer together", 2048)
    flags.one("prompt", INTEGER, "tokens of each prompt, for TTFT; without it the whole context")
    flags.group("Output")
    flags.switch(
        "what_if", "show what other attention, other caches, rounding or a draft would change"
    )
    flags.switch("compile", "compile for the TPU slice, with no TPU here, and show what it takes")
    flags.text("plot", "draw the roofline into this PNG, SVG or PDF file", form="FILE")
    flags.switch("json", "one JSON object on stdout in place of tables")


def run(values: FlagValues) -> None:
    settings, machine = _settings(values), _machine(values)
    if values.plot is not None:
        plot.check(Path(values.plot))
    shape = _compilable(settings, machine) if values.compile else ""
    name, config = _config(values.model)
    mesh, proposed = _mesh(values.mesh, config, machine, values.batch, settings)
    rows = [plan.row(config, machine, mesh, batch, settings) for batch in values.batch]
    found = _document(name, config, machine, mesh, proposed, settings, rows)
    if values.what_if:
        batch = max((row.batch for row in rows if row.fits), default=rows[0].batch)
        changes = what_if.effects(config, machine, mesh, batch, settings)
        found["what_if"] = {"batch": batch, "rows": [dataclasses.asdict(one) for one in changes]}
    if not values.json:
        plan_tables.show(found)
    if values.compile:
        found["compile"] = _compile(config, machine, shape, mesh, rows, settings)
        if not values.json:
            plan_tables.show_compiled(found["compile"], machine.unit)
    if values.plot is not None:
        kind = formats.find(settings.weights)
        title = f"{name} on {machine}, {settings.weights} weights, context {settings.context:,}"
        plot.draw(rows, kind, title, Path(values.plot))
        output.note(f"wrote {values.plot}")
    if values.json:
        output.write_json(found)


def _settings(values: FlagValues) -> plan.Settings:
    prompt = values.context if values.prompt is None else values.prompt
    if values.context < 1 or not 1 <= prompt <= values.context:
        raise ValueError(
            f"needs --context >= 1 and --prompt from 1 to --context, got {values.context} and {prompt}"
        )
    return plan.Settings(values.context, prompt, values.quantize or values.dtype, values.kv_dtype)


def _machine(values: FlagValues) -> plan.Machine:
    if (values.chip is None) == (values.topology is None):
        got = "neither" if values.chip is None else "both"
        raise ValueError(
            f"needs one of --chip (like v5e) and --topology (like v5e:2x4), got {got}; chips are "
            f"{', '.join(plan.CHIPS)}"
        )
    if values.topology is not None:
        return plan.topology(values.topology)
    if values.chip == HERE:
        with _spinner() as bar:
            task = bar.add_task("", total=None)
            ceilings = measure_ceilings(
                progress=lambda what: bar.update(
                    task, description=f"measuring this machine: {what}"
                )
            )
        return plan.Machine(ceilings.chip())
    return plan.Machine(plan.find_chip(values.chip))


def _spinner() -> Progress:
    """What is being waited for, on stderr where that is a terminal."""
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    shown = sys.stderr.isatty()
    return Progress(*columns, console=Console(stderr=True), transient=True, disable=not shown)


def _config(model: str | None) -> tuple[str, ModelConfig]:
    """A folder, a preset or a hub id, in this order."""
    if model is None:
        return shipped.target().name, weights.config_of(shipped.target())
    if not Path(model).expanduser().is_dir():
        preset = presets.find(model)
        if preset is not None:
            return model.lower(), preset
        if "/" not in model:
            near = presets.near(model)
            hint = f"did you mean {' or '.join(near)}?" if near else ", ".join(presets.PRESETS)
            raise ValueError(f"no folder and no known model is called {model!r}; {hint}")
    return model, weights.config_of(model)


def _mesh(text, config, machine, batches, settings) -> tuple[Mesh, bool]:
    """The mesh, and whether it was proposed here."""
    if text is None:
        return plan.propose(config, machine, batches, settings), True
    mesh = Mesh(**mesh_axes(text))
    if mesh.devices != machine.devices:
        raise ValueError(
            f"--mesh={text} is for {mesh.devices} devices, and {machine} has {machine.devices}; "
            "data x model needs to be all of them"
        )
    decoder.layout(config, mesh.model)  # ValueError where heads or widths do not divide
    return mesh, False


def _document(name, config, machine, mesh, proposed, settings, rows) -> dict:
    """Everything that was found, ready for JSON."""
    chip = machine.device
    kinds: dict[str, Any] = dict(weights=settings.weights, cache=settings.cache)
    alone = plan.row(config, machine, mesh, 1, settings).prefill
    too_large = [row for row in rows if not row.fits]
    found = {
        "model": name,
        "parameters": sum(map(math.prod, decoder.canonical_shapes(config).values())),
        "weights": settings.weights,
        "kv_cache": settings.cache,
        "kv_bytes_per_token": cache_bytes(config, 1, settings.cache),
        "context": settings.context,
        "prompt": settings.prompt,
        "max_position": config.max_position,
        "chip": machine.chip.name,
        "chips": machine.count,
        "unit": machine.unit,
        "memory_limit_bytes": chip.room,
        "bandwidth": chip.bandwidth,
        "peak": chip.peak(FORMATS[settings.weights].compute),
        "source": chip.source,
        "mesh": {"data": mesh.data, "model": mesh.model},
        "mesh_proposed": proposed,
        "ttft_one_prompt_s": alone.latency_s,
        "critical_batch": critical_batch(config, chip, settings.context, mesh=mesh, **kinds),
        "critical_batch_without_cache": critical_batch(config, chip, 1, mesh=mesh, **kinds),
        "largest_batch": plan.largest_batch(config, machine, mesh, settings),
        "rows": [plan_tables.row(row) for row in rows],
        "remedies": plan.remedies(config, machine, too_large[0].batch, settings)
        if too_large
        else [],
    }
    return found


def _compilable(settings: plan.Settings, machine: plan.Machine) -> str:
    topology.check()
    if settings.weights not in ("bfloat16", *topology.ROUNDED) or settings.cache == "float32":
        raise ValueError(
            f"--compile needs weights in bfloat16 or --quantize={'|'.join(topology.ROUNDED)}, and "
            f"a --kv_dtype other than float32, got {settings.weights} and {settings.cache}"
        )
    return topology.shape_of(machine.chip.name, machine.count, machine.shape)


def _compile(config, machine, shape, mesh, rows, settings) -> dict:
    """Compile for the largest batch that should fit, else for the smallest."""
    row = max(
        (row for row in rows if row.fits),
        key=lambda row: row.batch,
        default=min(rows, key=lambda row: row.batch),
    )
    request = topology.Request(
        chip=machine.chip.name,
        shape=shape,
        config=config,
        data=mesh.data,
        model=mesh.model,
        batch=-(-row.batch // mesh.data) * mesh.data,
        context=settings.context,
        chunk=min(plan.CHUNK, settings.prompt),
        quantize=None if settings.weights == "bfloat16" else settings.weights,
        kv_dtype=settings.cache,
    )
    done = []
    with _spinner() as bar:
        what = f"compiling {{}} for {machine.chip.name}:{shape}, batch {request.batch}"
        task = bar.add_task(what.format(topology.PROGRAMS[0]), total=None)
        for compiled in topology.compile_for(request):
            done.append(compiled)
            if len(done) < len(topology.PROGRAMS):
                bar.update(task, description=what.format(topology.PROGRAMS[len(done)]))
    return plan_tables.compiled(request, done, row, machine.device)


COMMAND = Command(
    name="plan",
    summary="what a model needs and how fast it can be, on chips you may not have",
    description="Works out, from the model's own layout and the chip's data sheet, whether it fits, over which mesh, "
    "and the floors of time to first token and time per token: no program on that chip is faster. Beside it stands "
    "the textbook's simpler count (every parameter read, time = bytes / bandwidth). Fetches no weights.",
    examples=(
        "jaxinfer plan llama-3.1-8b --chip=h100",
        "jaxinfer plan llama-3.1-70b --topology=v5e:4x4 --quantize=int8 --batch=1,32 --context=8192",
        "jaxinfer plan qwen3-8b --topology=v6e:2x2 --batch=64 --compile",
        "jaxinfer plan gemma-3-27b --topology=h100:2 --what_if --plot=roofline.png",
    ),
    define=define,
    run=run,
    positional=("model",),
)
