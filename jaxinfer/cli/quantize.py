"""jaxinfer quantize: a checkpoint in fewer bits."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from absl.flags import FlagValues
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxinfer import calibrate, shipped, weights
from jaxinfer.cli import model, output, prompt, target
from jaxinfer.cli.flags import INTEGER, Command, Flags
from jaxinfer.cli.info import size
from jaxinfer.quantize import CALIBRATED, METHODS, Recipe
from jaxinfer.quantize.fp8 import SHARED
from jaxinfer.tokenizer import Tokenizer
from jaxinfer.weights import orbax
from jaxinfer.weights.loaded import DTYPES, Loaded

READS_TEXT = (*CALIBRATED, "llm_int8")  # the last one may do without


def define(flags: Flags) -> None:
    flags.group("Checkpoints")
    model.define_name(flags)
    target.define(flags)
    target.define_overwrite(flags)
    flags.group("Method")
    flags.choice("method", "how weights are rounded", (*METHODS, *CALIBRATED))
    flags.one("bits", INTEGER, "4 or 8, where a method has the choice (awq, gptq); without it 4")
    flags.one(
        "group_size",
        INTEGER,
        "neighbours along a row that share a scale, of four-bit weights and fp8 blocks; without it "
        "128, or the largest power of two below that divides every row",
    )
    flags.switch("zero_points", "four-bit groups from their least to their largest weight")
    flags.choice("shared", "what shares an fp8 scale", SHARED, "channel")
    flags.choice("dtype", "of what is not rounded; without it, as it is", DTYPES)
    flags.group("Calibration (awq, gptq, smoothquant; llm_int8 if there is a text)")
    flags.text(
        "calibration_file",
        "text like what the model will read, UTF-8; - is standard input",
        form="FILE",
    )
    flags.one("calibration_tokens", INTEGER, "how many of it are read", calibrate.TOKENS)
    flags.one("window", INTEGER, "tokens that see each other", calibrate.WINDOW)
    flags.group("Output")
    flags.switch("json", "one JSON object on stdout in place of text")


def run(values: FlagValues) -> None:
    begin, folder = time.perf_counter(), target.given(values.output)
    recipe = _recipe(values)
    text = None if values.calibration_file is None else prompt.read_text(values.calibration_file)
    source = (
        shipped.target() if values.model is None else weights.resolve(values.model)
    ).absolute()
    target.check(folder, source, values.overwrite)
    if orbax.is_checkpoint(source):
        raise ValueError(
            f"{source}: needs the Hugging Face layout, got an Orbax checkpoint; name the model that it "
            "was made of, or write it with jaxinfer convert --to=huggingface"
        )
    dtype = values.dtype or target.stored_dtype(source)
    output.note(f"reading {source}")
    if text is None:
        loaded = weights.load(source, dtype=dtype, quantize=recipe, show_progress=True)
    else:
        loaded = _calibrated(values, source, recipe, text, dtype)
    output.note(f"writing {folder}")
    with target.replaced(folder) as new:
        target.save_orbax(new, loaded, source / target.CONFIG, recipe.method)
    found = {
        "folder": str(folder),
        "method": str(recipe),
        **weights.describe(folder),
        "seconds": time.perf_counter() - begin,
    }
    if values.json:
        output.write_json(found)
    else:
        held = size(found["bytes"])
        output.write(f"{folder}: {found['method']}, {held} in {found['seconds']:.1f} s\n")


def _recipe(values: FlagValues) -> Recipe:
    if values.method is None:
        raise ValueError(f"needs --method, one of {', '.join((*METHODS, *CALIBRATED))}, got none")
    recipe = Recipe(
        values.method,
        bits=values.bits,
        group=values.group_size,
        symmetric=not values.zero_points,
        shared=values.shared,
    )
    if recipe.calibrated and values.calibration_file is None:
        raise ValueError(
            f"--method={recipe.method} needs --calibration_file, text like what the model will read, "
            "got none"
        )
    if values.calibration_file is not None and recipe.method not in READS_TEXT:
        raise ValueError(
            f"--calibration_file needs a method among {', '.join(READS_TEXT)}, got {recipe.method}, "
            "which looks at weights alone"
        )
    return recipe


def _calibrated(values, source: Path, recipe: Recipe, text: str, dtype: str) -> Loaded:
    if not (source / "tokenizer.json").exists():
        raise ValueError(f"{source}: calibration needs tokenizer.json, which is missing; fetch it")
    ids = Tokenizer.load(source).encode(text)
    with _bar() as progress:
        return calibrate.calibrate(
            source,
            recipe,
            ids,
            window=values.window,
            tokens=values.calibration_tokens,
            dtype=dtype,
            progress=progress,
        )


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    """What calibration calls after every layer: a bar on stderr, where that is a terminal."""
    console = Console(stderr=True)
    columns = (
        TextColumn("quantizing layers"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


COMMAND = Command(
    name="quantize",
    summary="write a checkpoint in fewer bits",
    description="Rounds the matrices of a model in the Hugging Face layout and writes our own, which every command "
    "loads by --model, onto any mesh. int8, int4, fp8, w8a8 and llm_int8 look at weights alone, as --quantize does "
    "while loading; awq, gptq and smoothquant look at what the layers see of a text, layer by layer, so that one "
    "layer is held in float32 at a time. The output head (and a tied embedding) keeps eight bits. What it costs: "
    "jaxinfer quality.",
    examples=(
        "jaxinfer quantize --method=int4 --output ~/models/pico-int4",
        "jaxinfer quantize ~/models/Llama-3.2-1B ~/models/Llama-3.2-1B-awq --method=awq --calibration_file=text.txt",
        "jaxinfer quantize --method=gptq --group_size=64 --zero_points --calibration_file=text.txt --output out",
        "jaxinfer quantize --method=smoothquant --calibration_file=text.txt --output out  # then: --model out",
    ),
    define=define,
    run=run,
    positional=("model", "output"),
)
