"""jaxinfer quality: what a setting costs in the model's answers."""

import sys
from pathlib import Path

from absl.flags import FlagValues
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table

from jaxinfer import compile_cache, quality
from jaxinfer.cli import model, output, prompt
from jaxinfer.cli.flags import INTEGER, Command, Flags
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
        "what is compared with, of the keys model, dtype, quantize and kernels (on or off); without it "
        "the model as it loads",
        form=keys,
    )
    flags.text("candidate", "what is judged, of the same keys", form=keys)
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
    flags.switch("json", "one JSON object on stdout in place of tables")
    flags.text("plot", "a PNG: how KL is spread over the positions", form="FILE")


def run(values: FlagValues) -> None:
    for name in ("file", "candidate"):
        if values[name].value is None:
            raise ValueError(f"needs --{name}, got none; --help shows examples")
    if values.plot is not None:
        plot.check(Path(values.plot))
    text = prompt.read_text(values.file)
    if values.compile_cache is not None:
        compile_cache.enable(values.compile_cache)
    reference, candidate = quality.load(
        quality.Setting.parse(values.reference or "", values.model),
        quality.Setting.parse(values.candidate, values.model),
        mesh=values.mesh,
    )
    report = _compare(values, reference, candidate, text)
    if values.plot is not None:
        plot.draw(report, Path(values.plot))
    described = report.describe()
    if values.json:
        output.write_json(described)
    else:
        show(described, Console(file=sys.stdout))


def _compare(values, reference: quality.Side, candidate: quality.Side, text: str) -> quality.Report:
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
        track=lambda windows: track(
            windows, "comparing", console=console, transient=True, disable=not console.is_terminal
        ),
    )


def show(described: dict, console: Console) -> None:
    """Two tables and the verdict."""
    sides = [described["reference"], described["candidate"]]
    table = Table(
        f"{described['tokens']:,} tokens", "reference", "candidate", box=SIMPLE_HEAD, pad_edge=False
    )
    table.add_row("setting", *(side["setting"] for side in sides))
    for name in ("perplexity", "bits_per_byte"):
        cells = (f"{side[name]:.4f} ± {side[f'{name}_error']:.4f}" for side in sides)
        table.add_row(name.replace("_", " "), *cells)
    table.add_row("weights", *(f"{side['weight_bytes'] / 1e6:,.1f} MB" for side in sides))
    table.add_row("KV a token", *(f"{side['kv_bytes_per_token']:,} bytes" for side in sides))
    console.print(table)
    console.print(_distances(described))
    console.print(described["sentence"], highlight=False, soft_wrap=True)


def _distances(described: dict) -> Table:
    kl, parted = described["kl"], described["continuations"]
    table = Table("candidate against reference", "", box=SIMPLE_HEAD, pad_edge=False)
    rise = f"{described['perplexity_rise']:+.3%} ± {described['perplexity_rise_error']:.3%}"
    table.add_row("perplexity", rise)
    table.add_row("KL a token, nats", f"{kl['mean']:.3g} ± {kl['error']:.1g}")
    table.add_row("KL: median, p99, max", f"{kl['median']:.3g}, {kl['p99']:.3g}, {kl['max']:.3g}")
    table.add_row("top-1 agreement", f"{described['top1_agreement']:.2%}")
    table.add_row("top-5 overlap", f"{described['top5_overlap']:.2%}")
    table.add_row("accepted as a draft", f"{described['acceptance']:.2%}")
    delta = f"{described['mean_delta_logprob']:.3g}, {described['max_delta_logprob']:.3g}"
    table.add_row("change of log-probability: mean, max", delta)
    if parted["prompts"]:
        same = f"{parted['identical']} of {parted['prompts']} for {parted['tokens']} tokens"
        table.add_row("identical greedy continuations", same)
    if parted["least"] is not None:
        where = f"{parted['least']} .. {parted['most']}, median {parted['median']:g}"
        table.add_row("others part at token", where)
    return table


COMMAND = Command(
    name="quality",
    summary="what a setting costs in the model's answers",
    description="Reads a held-out text with two settings of a model, or two models of one tokenizer, and reports "
    "perplexity and bits per byte of both with standard errors, the KL divergence of their distributions token by "
    "token (reference to candidate), how often they agree, how far log-probabilities move, where greedy "
    "continuations part, the memory of both, and a verdict with its thresholds. Logits are held for a few hundred "
    "positions at a time.",
    examples=(
        "jaxinfer quality --file held_out.txt --candidate=quantize=int8",
        "jaxinfer quality --file held_out.txt --reference=dtype=float32 --candidate=dtype=bfloat16,quantize=int8",
        "jaxinfer quality --file held_out.txt --candidate=model=checkpoints/pico-2m-draft --plot=kl.png --json",
    ),
    define=define,
    run=run,
    positional=("file",),
)
