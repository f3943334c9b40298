"""jaxinfer quality: what a setting costs in the model's answers."""

import sys
from pathlib import Path

from absl.flags import FlagValues
from rich.console import Console
from rich.progress import track

from jaxinfer import compile_cache, quality
from jaxinfer.cli import model, output, prompt, quality_tables
from jaxinfer.cli.flags import INTEGER, TEXT, Command, Flags
from jaxinfer.cli.perplexity import WINDOW
from jaxinfer.quality import plot


def define(flags: Flags) -> None:
    flags.group("Text")
    flags.text("file", "held-out text, UTF-8; - is standard input", form="FILE")
    flags.one(
        "window",
        INTEGER,
        f"tokens the models see at once; without it {WINDOW}, or their context if less",
    )
    flags.one(
        "stride", INTEGER, "tokens from one window's end to the next; without it half a window"
    )
    flags.group("Settings")
    model.define_name(flags)
    keys = "KEY=VALUE,..."
    flags.text(
        "reference",
        "what is compared with, of the keys model, dtype, quantize, kv_dtype and kernels (on or off); "
        "without it the model as it loads",
        form=keys,
    )
    flags.many("candidate", TEXT, "what is judged, of the same keys", form=keys)
    flags.text("mesh", "spread both over several devices, like data=2,model=4", form="AXES")
    flags.text(
        "compile_cache",
        "where compiled programs are kept; without it ~/.cache/jaxinfer/xla",
        form="FOLDER",
    )
    flags.group("Greedy continuations")
    flags.one("prompts", INTEGER, "how many, at even distances of the file; 0 leaves them out", 16)
    flags.one("prompt_tokens", INTEGER, "length of each prompt", 64)
    flags.one("new_tokens", INTEGER, "how far each is continued", 64)
    flags.group("Output")
    flags.switch("speed", "also time decoding, of one sequence")
    flags.switch("json", "one JSON object on stdout in place of tables")
    flags.text(
        "plot",
        "a PNG: how KL is spread over the positions; of several candidates quality against bytes",
        form="FILE",
    )


def run(values: FlagValues) -> None:
    for name in ("file", "candidate"):
        if not values[name].value:
            raise ValueError(f"needs --{name}, got none; --help shows examples")
    settings = [quality.Setting.parse(text, values.model) for text in values.candidate]
    if values.plot is not None:
        plot.check(Path(values.plot))
    text = prompt.read_text(values.file)
    if values.compile_cache is not None:
        compile_cache.enable(values.compile_cache)
    reference = _timed(
        values,
        quality.load(quality.Setting.parse(values.reference or "", values.model), mesh=values.mesh),
    )
    console = Console(file=sys.stdout)
    if len(settings) == 1:
        candidate = quality.load_beside(reference, settings[0], mesh=values.mesh)
        report = _compare(values, reference, _timed(values, candidate), text, None)
        if values.plot is not None:
            plot.draw(report, Path(values.plot))
        described = report.describe()
        show = quality_tables.show
    else:
        described = _several(values, reference, settings, text)
        if values.plot is not None:
            plot.draw_sizes(described, Path(values.plot))
        show = quality_tables.show_several
    if values.json:
        output.write_json(described)
    else:
        show(described, console)


def _several(values, reference: quality.Side, settings: list[quality.Setting], text: str) -> dict:
    """One candidate after the other, each with the reference, which is read once."""
    reader, found = quality.Kept(reference), []
    for setting in settings:
        output.note(f"comparing {setting}")
        candidate = quality.load_beside(reference, setting, mesh=values.mesh)
        report = _compare(values, reference, _timed(values, candidate), text, reader)
        found.append(report.describe())
        del candidate, report  # one candidate's weights at a time
    return quality.together(found)


def _timed(values, side: quality.Side) -> quality.Side:
    return quality.timed(side) if values.speed and side.decode_s is None else side


def _compare(
    values, reference: quality.Side, candidate: quality.Side, text: str, reader
) -> quality.Report:
    loaded = reference.model
    if not text:
        raise ValueError(f"{values.file}: needs some text, got an empty file")
    ids = loaded.encode(text)
    begun = "" if loaded.tokenizer is None else loaded.tokenizer.decode(ids[:1])
    most = min(side.model.config.max_position for side in (reference, candidate))
    window = min(WINDOW, most) if values.window is None else values.window
    console = Console(stderr=True)
    return quality.compare(
        reference,
        candidate,
        ids,
        size=len(text.encode()) - len(begun.encode()),
        window=window,
        stride=max(window // 2, 1) if values.stride is None else values.stride,
        prompts=values.prompts,
        prompt_tokens=values.prompt_tokens,
        new_tokens=values.new_tokens,
        reader=reader,
        track=lambda windows: track(
            windows, "comparing", console=console, transient=True, disable=not console.is_terminal
        ),
    )


COMMAND = Command(
    name="quality",
    summary="what a setting costs in the model's answers",
    description="Reads a held-out text with two settings of a model, or two models of one tokenizer, and reports "
    "perplexity and bits per byte of both with standard errors, the KL divergence of their distributions token by "
    "token (reference to candidate), how often they agree, how far log-probabilities move, where greedy "
    "continuations part, the memory of both, and a verdict with its thresholds. Several candidates stand in one table "
    "and in a picture of quality against bytes. Logits are held for a few hundred positions at a time.",
    examples=(
        "jaxinfer quality --file held_out.txt --candidate=quantize=int8",
        "jaxinfer quality held_out.txt --candidate=quantize=int8 --candidate=model=out --speed --plot=sizes.png",
        "jaxinfer quality --file held_out.txt --reference=dtype=float32 --candidate=dtype=bfloat16,quantize=int8",
        "jaxinfer quality --file held_out.txt --reference=kv_dtype=float32 --candidate=kv_dtype=int8",
        "jaxinfer quality --file held_out.txt --candidate=model=checkpoints/pico-2m-draft --plot=kl.png --json",
    ),
    define=define,
    run=run,
    positional=("file",),
)
