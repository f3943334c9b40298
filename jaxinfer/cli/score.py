"""jaxinfer score: how likely each token of a text is."""

import math
import sys

from absl.flags import FlagValues
from rich.console import Console
from rich.text import Text

from jaxinfer.cli import model, output, prompt
from jaxinfer.cli.flags import Command, Flags
from jaxinfer.model import Model, Scored
from jaxinfer.tokenizer import Tokenizer

SHADES = (
    (math.log(0.5), "green"),
    (math.log(0.1), "yellow"),
    (math.log(0.01), "dark_orange"),
    (-math.inf, "red"),
)


def define(flags: Flags) -> None:
    prompt.define(flags)
    model.define(flags)
    flags.group("Output")
    flags.switch("json", "one JSON object on stdout in place of a table")


def run(values: FlagValues) -> None:
    prompts = prompt.read(values)
    loaded = model.read(values)
    scored = loaded.score(prompts)
    if values.json:
        described = [describe(one) for one in scored]
        output.write_json(
            described[0] if len(described) == 1 else {**described[0], "scores": described}
        )
        return
    for one in scored:
        _show(loaded, one)


def describe(scored: Scored) -> dict:
    """token_ids and logprobs, one a token, None for the first, and their mean."""
    return {
        "token_ids": scored.token_ids,
        "logprobs": scored.logprobs,
        "mean_logprob": mean(scored),
    }


def mean(scored: Scored) -> float | None:
    """Mean log-probability of the tokens that have one."""
    values = [value for value in scored.logprobs if value is not None]
    return sum(values) / len(values) if values else None


def _show(loaded: Model, scored: Scored) -> None:
    texts = [piece(loaded.tokenizer, token) for token in scored.token_ids]
    if output.is_terminal(sys.stdout) and loaded.tokenizer is not None:
        Console().print(_coloured(texts, scored), soft_wrap=True)
    rows = zip(scored.token_ids, scored.logprobs, texts, strict=True)
    lines = [
        f"{token}\t{'' if value is None else f'{value:.4f}'}\t{text!r}\n"
        for token, value, text in rows
    ]
    output.write("token\tlogprob\ttext\n" + "".join(lines))
    average = mean(scored)
    if average is not None:
        output.note(
            f"{len(texts)} tokens, mean log-probability {average:.4f}, perplexity {math.exp(-average):.4g}"
        )


def piece(tokenizer: Tokenizer | None, token: int) -> str:
    """One token's own text, special tokens by their names."""
    return "" if tokenizer is None else tokenizer.decode([token], skip_special_tokens=False)


def _coloured(texts: list[str], scored: Scored) -> Text:
    line = Text()
    for text, value in zip(texts, scored.logprobs, strict=True):
        colour = "dim" if value is None else next(name for least, name in SHADES if value >= least)
        line.append(
            "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text), style=colour
        )
    return line


COMMAND = Command(
    name="score",
    summary="the log-probability of each token of a text",
    description="Scores a text by the model's own distribution (no temperature): log p(token | tokens before it), "
    "natural logarithm; the first token has none. On a terminal the text is coloured, green likely to red "
    "unlikely, above a table of tab-separated columns. The text is taken as it stands, without a chat template.",
    examples=(
        "jaxinfer score --prompt 'for i in range(10):'",
        "jaxinfer score --prompt_file essay.txt --json",
        'jaxinfer score --token_ids 1,2,3 --json       # {"token_ids": [1, 2, 3], "logprobs": [null, ...], ...}',
    ),
    define=define,
    run=run,
    positional=("prompt",),
)
