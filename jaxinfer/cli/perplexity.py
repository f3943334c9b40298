"""jaxinfer perplexity: how well a model predicts a file."""

from absl.flags import FlagValues
from rich.console import Console
from rich.progress import track

from jaxinfer import perplexity
from jaxinfer.cli import model, output, prompt
from jaxinfer.cli.flags import INTEGER, Command, Flags

WINDOW = 1024


def define(flags: Flags) -> None:
    flags.group("Text")
    flags.text("file", "the text, UTF-8; - is standard input", form="FILE")
    flags.one(
        "window",
        INTEGER,
        f"tokens the model sees at once; without it {WINDOW}, or its context if less",
    )
    flags.one(
        "stride",
        INTEGER,
        "tokens from one window's end to the next: less is slower and gives each token more "
        "context; without it half a window",
    )
    model.define(flags)
    flags.group("Output")
    flags.switch("json", "one JSON object on stdout in place of a table")


def run(values: FlagValues) -> None:
    if values.file is None:
        raise ValueError("needs --file, got none")
    text = prompt.read_text(values.file)
    loaded = model.read(values)
    most = loaded.config.max_position
    window = min(WINDOW, most) if values.window is None else values.window
    if window > most:
        raise ValueError(f"--window needs to be at most the model's {most} positions, got {window}")
    stride = max(window // 2, 1) if values.stride is None else values.stride
    if not text:
        raise ValueError(f"{values.file}: needs some text, got an empty file")
    ids = loaded.encode(text)
    begun = "" if loaded.tokenizer is None else loaded.tokenizer.decode(ids[:1])
    windows = perplexity.windows(len(ids), window, stride)
    console = Console(stderr=True)
    shown = track(
        windows, "scoring", console=console, transient=True, disable=not console.is_terminal
    )
    found = perplexity.measure(
        lambda part: [value or 0.0 for value in loaded.score(part)[0].logprobs],
        ids,
        shown,
        size=len(text.encode()) - len(begun.encode()),
    )
    described = {
        "perplexity": found.perplexity,
        "bits_per_byte": found.bits_per_byte,
        "tokens": found.tokens,
        "bytes": found.size,
        "window": window,
        "stride": stride,
    }
    if values.json:
        output.write_json(described)
    else:
        output.table(
            {
                name: f"{value:.4f}" if isinstance(value, float) else value
                for name, value in described.items()
            }
        )


COMMAND = Command(
    name="perplexity",
    summary="how well a model predicts a file",
    description="Perplexity (per token; it depends on the tokenizer) and bits per byte (it does not) of a text file. A "
    "long file is read in windows that overlap, so that every token but those of the first window is predicted from at "
    "least window - stride tokens before it. tokens and bytes count what was predicted: all but the first token.",
    examples=(
        "jaxinfer perplexity --file README.md",
        "jaxinfer perplexity --file corpus.txt --window 512 --stride 128 --json",
    ),
    define=define,
    run=run,
    positional=("file",),
)
