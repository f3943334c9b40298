"""jaxinfer bench decode|prefill|throughput|startup|serve: what this machine reaches, and what it could;
what a server gives its users.
"""

from absl.flags import FlagValues

from jaxinfer.bench import decode, environment, prefill, startup, subject, throughput
from jaxinfer.cli import model
from jaxinfer.cli.bench import serve
from jaxinfer.cli.bench.lists import PLAIN, methods, sizes
from jaxinfer.cli.bench.sweep import argv, check, progress, show, sweep
from jaxinfer.cli.flags import INTEGER, REAL, Command, Flags
from jaxinfer.quantize import METHODS
from jaxinfer.weights.loaded import DTYPES

REPEATS = {"decode": 5, "prefill": 5, "throughput": 1, "startup": 3}


def _define(flags: Flags, kind: str) -> None:
    """The flags that all four share."""
    flags.group("Model")
    flags.text(
        "model",
        "a folder with a checkpoint, a Hugging Face hub id, or, with --weights=random, a preset such "
        "as llama-3.1-8b; without it, the model that ships with jaxinfer",
        form="FOLDER|ORG/NAME|PRESET",
    )
    flags.choice(
        "weights",
        "random: the same shapes drawn on the device, nothing to download; as fast as real ones",
        subject.SOURCES,
        subject.SOURCES[0],
    )
    flags.choice(
        "dtype", "of the weights; without it the checkpoint's own, and float32 on CPU", DTYPES
    )
    flags.text(
        "quantize",
        f"how to round the weights; several are measured in turn: {', '.join((PLAIN, *METHODS))}",
        form="METHOD,METHOD",
    )
    model.define_kv_dtype(flags)
    if kind != "startup":
        flags.text(
            "compile_cache",
            "where compiled programs are kept; without it ~/.cache/jaxinfer/xla",
            form="FOLDER",
        )
    flags.group("Measurement")
    flags.one("repeats", INTEGER, "timed runs; medians are shown", REPEATS[kind])
    if kind in ("decode", "prefill"):
        flags.text("batch", "rows at once; every size is measured", "1", "N,N,...")
        flags.text("context", "tokens of a row; every size is measured", "1024", "N,N,...")
        flags.switch("profile", "trace one run of every row: a table of time by kernel")


def _define_output(flags: Flags, kind: str) -> None:
    flags.group("Output")
    if kind in ("decode", "prefill"):
        flags.text(
            "plot",
            "draw latency against throughput, and a roofline with the measured points",
            form="FILE.png",
        )
    flags.text(
        "output",
        "keep the JSON document here, a line of it in history.jsonl, and traces",
        form="FOLDER",
    )
    flags.switch("json", "the JSON document alone on stdout, no table")


def _define_decode(flags: Flags) -> None:
    _define(flags, "decode")
    flags.one(
        "steps",
        INTEGER,
        "decode steps of one run, the last of which reaches --context (at most a quarter of it)",
        decode.Case.steps,
    )
    flags.switch("device_only", "leave out the run of Model that shows what the host adds")
    _define_output(flags, "decode")


def _define_prefill(flags: Flags) -> None:
    _define(flags, "prefill")
    flags.one("chunk", INTEGER, "tokens of a prompt read at once; without it the whole prompt")
    _define_output(flags, "prefill")


def _define_throughput(flags: Flags) -> None:
    _define(flags, "throughput")
    flags.one("requests", INTEGER, "how many requests", throughput.Case.requests)
    flags.one("input_tokens", INTEGER, "mean length of a prompt", throughput.Case.input)
    flags.one("output_tokens", INTEGER, "mean length of an answer", throughput.Case.output)
    flags.one(
        "vary",
        REAL,
        "lengths are uniform in 1 - vary .. 1 + vary of their mean",
        throughput.Case.vary,
        "X",
    )
    flags.one("max_slots", INTEGER, "how many requests run at once", throughput.Case.slots)
    flags.one("seed", INTEGER, "of the lengths and prompts", throughput.Case.seed)
    _define_output(flags, "throughput")


def _define_startup(flags: Flags) -> None:
    _define(flags, "startup")
    flags.one("prompt_tokens", INTEGER, "length of the prompt", startup.Case.prompt)
    _define_output(flags, "startup")


def _run_decode(values: FlagValues) -> None:
    cases = [
        decode.Case(batch, context, values.steps)
        for context in sizes("context", values.context)
        for batch in sizes("batch", values.batch)
    ]
    check(values, max(case.context for case in cases))

    def one(held, case, found, folder):
        return decode.run(
            held,
            case,
            found,
            repeats=values.repeats,
            with_wall=not values.device_only,
            trace=folder and folder / f"batch-{case.batch}-context-{case.context}",
        )

    shapes = [{"batch": case.batch, "context": case.context} for case in cases]
    sweep(values, "decode", list(zip(cases, shapes, strict=True)), one)


def _run_prefill(values: FlagValues) -> None:
    cases = [
        prefill.Case(batch, length, values.chunk)
        for length in sizes("context", values.context)
        for batch in sizes("batch", values.batch)
    ]
    check(values, max(case.length for case in cases))

    def one(held, case, found, folder):
        return prefill.run(
            held,
            case,
            found,
            repeats=values.repeats,
            trace=folder and folder / f"batch-{case.batch}-context-{case.length}",
        )

    shapes = [{"batch": case.batch, "context": case.length} for case in cases]
    sweep(values, "prefill", list(zip(cases, shapes, strict=True)), one)


def _run_throughput(values: FlagValues) -> None:
    case = throughput.Case(
        requests=values.requests,
        input=values.input_tokens,
        output=values.output_tokens,
        vary=values.vary,
        slots=values.max_slots,
        seed=values.seed,
    )
    check(values, None)

    def one(held, case, found, folder):
        return throughput.run(held, case, found, repeats=values.repeats)

    shape = {"requests": case.requests, "slots": case.slots}
    sweep(values, "throughput", [(case, shape)], one)


def _run_startup(values: FlagValues) -> None:
    if values.prompt_tokens < 1:
        raise ValueError(f"--prompt_tokens needs to be at least 1, got {values.prompt_tokens}")
    check(values, values.prompt_tokens + 1)
    rows, machine = [], {}
    with progress() as say:
        for method in methods(values.quantize):
            case = startup.Case(
                values.model,
                values.weights,
                values.dtype,
                method,
                values.prompt_tokens,
                values.kv_dtype,
            )
            found, machine = startup.run(case, repeats=values.repeats, progress=say)
            rows += found
    head = environment.describe("bench startup", argv(values, "startup"), machine)
    show(values, "startup", {**head, "ceilings": None, "rows": rows})


MEANINGS = (
    "Ceilings are measured first (a copy, reading, matrix products), so that every percentage is of "
    "what this machine can do and not of a datasheet. floor: what the weights and the cache cost at "
    "those ceilings. The last line of stdout is one JSON document."
)
DECODE = Command(
    name="bench decode",
    summary="time of a decode step against this machine's limit, over batch sizes and contexts",
    description="Runs the engine's own decoding loop with every row at work, times it on the device "
    "and shows how much of the machine's reading speed and arithmetic did useful work; wall ms is what "
    "a caller of Model sees per step (left out where the context is too short for it), host the ratio "
    f"of both. {MEANINGS}",
    examples=(
        "jaxinfer bench decode --context=512",
        "jaxinfer bench decode --model=llama-3.1-8b --weights=random --batch=1,16,64 --context=256,1024",
        "jaxinfer bench decode --batch=1,2,4,...,256 --plot=frontier.png --output=results",
        "jaxinfer bench decode --model=llama-3.2-1b --weights=random --quantize=none,int8 --profile",
        "jaxinfer bench decode --model=llama-3.1-8b --weights=random --batch=64 --kv_dtype=int8",
    ),
    define=_define_decode,
    run=_run_decode,
)
PREFILL = Command(
    name="bench prefill",
    summary="time to first token of prompts against this machine's limit",
    description="Runs the engine's own step over whole prompts, from ids on the host to first tokens "
    f"on the host (TTFT). The computed part of the ceiling is the model FLOP utilization. {MEANINGS}",
    examples=(
        "jaxinfer bench prefill --batch=1,4 --context=512",
        "jaxinfer bench prefill --model=llama-3.1-8b --weights=random --batch=16 --profile",
        "jaxinfer bench prefill --model=llama-3.1-8b --weights=random --context=8192 --chunk=2048",
    ),
    define=_define_prefill,
    run=_run_prefill,
)
THROUGHPUT = Command(
    name="bench throughput",
    summary="tokens per second of many requests through the engine, offline",
    description="Requests of random lengths, all there from the start, run through the engine with "
    "continuous batching. They run once before the clock starts, which compiles what they need. "
    f"{MEANINGS}",
    examples=(
        "jaxinfer bench throughput --requests=64 --input_tokens=128 --output_tokens=64",
        "jaxinfer bench throughput --model=llama-3.1-8b --weights=random --max_slots=256",
    ),
    define=_define_throughput,
    run=_run_throughput,
)
STARTUP = Command(
    name="bench startup",
    summary="from process start to first token, with cold and warm compile cache",
    description="Starts fresh processes and times their parts: python, import, device, load, trace, "
    "compile, run. cold has an empty compile cache, warm what the cold one left there; next one is "
    "the time to first token once all is ready. The last line of stdout is one JSON document.",
    examples=(
        "jaxinfer bench startup",
        "jaxinfer bench startup --model=llama-3.2-1b --weights=random --repeats=1 --json",
    ),
    define=_define_startup,
    run=_run_startup,
)
COMMANDS = (DECODE, PREFILL, THROUGHPUT, STARTUP, serve.COMMAND)
