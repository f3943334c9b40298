"""jaxinfer generate: continue prompts, text as it comes."""

import contextlib
import dataclasses
import sys
from collections.abc import Iterable

from absl.flags import FlagValues

from jaxinfer.cli import model, output, prompt, sampling
from jaxinfer.cli.flags import INTEGER, Command, Flags
from jaxinfer.model import Stream, TextChunk
from jaxinfer.request import Completion


def define(flags: Flags) -> None:
    prompt.define(flags)
    prompt.define_template(flags)
    flags.switch("raw", "continue the text as it stands, also where the model has a chat template")
    sampling.define(flags)
    flags.one(
        "stream_window",
        INTEGER,
        "go on without end, remembering this many latest tokens and --sinks first ones",
    )
    flags.one("sinks", INTEGER, "first tokens that are kept with --stream_window", Stream.sinks)
    model.define(flags)
    model.define_slots(flags)
    flags.group("Output")
    flags.switch("json", "one JSON object on stdout in place of text")


def run(values: FlagValues) -> None:
    prompts, params = prompt.read(values), sampling.read(values)
    if values.raw and values.chat_template is not None:
        raise ValueError("--raw and --chat_template exclude each other; give one of them")
    if values["sinks"].present and values.stream_window is None:
        raise ValueError("--sinks needs --stream_window")
    stream = None if values.stream_window is None else Stream(values.stream_window, values.sinks)
    loaded = model.read(values, max_slots=values.max_slots)
    ids = prompt.encode(values, loaded, prompts)
    with contextlib.closing(loaded.stream(ids, params, stream=stream)) as chunks:
        if values.json:
            found = [chunk.completion for chunk in chunks if chunk.completion is not None]
            output.write_json(describe(sorted(found, key=lambda completion: completion.index)))
            return
        echo = (
            []
            if prompt.wraps(values, loaded.tokenizer)
            else [p if isinstance(p, str) else "" for p in prompts]
        )
        echo = [text for text in echo for _ in range(params.n)]
        show(chunks, echo, len(prompts) * params.n, as_ids=loaded.tokenizer is None)


def describe(completions: list[Completion]) -> dict:
    """The first completion's fields; all of them under `completions` where there are several."""
    described = [_fields(completion) for completion in completions]
    return described[0] if len(described) == 1 else {**described[0], "completions": described}


def _fields(completion: Completion) -> dict:
    fields = dataclasses.asdict(completion)
    if completion.logprobs is None:
        del fields["logprobs"], fields["top_logprobs"]
    return fields


def show(
    chunks: Iterable[TextChunk], echo: list[str], count: int, as_ids: bool = False
) -> list[Completion]:
    """Write texts in order: one as it comes, those behind it when their turn is there; then a line
    about the speed.
    """
    waiting = [""] * count
    done: list[Completion | None] = [None] * count
    turn = 0
    _head(turn, echo, count)
    for chunk in chunks:
        waiting[chunk.index] += f"{chunk.token.token_id} " if as_ids else chunk.text
        done[chunk.index] = chunk.completion or done[chunk.index]
        while turn < count:
            if waiting[turn]:
                output.write(waiting[turn])
                waiting[turn] = ""
            completion = done[turn]
            if completion is None:
                break
            output.write("\n")
            output.note(stats(completion))
            turn += 1
            if turn < count:
                _head(turn, echo, count)
    return [completion for completion in done if completion is not None]


def _head(turn: int, echo: list[str], count: int) -> None:
    if count > 1:
        output.note(f"[{turn + 1} of {count}]")
    if output.is_terminal(sys.stdout) and echo:
        sys.stdout.write(output.dim(echo[turn], sys.stdout))
        sys.stdout.flush()


def stats(completion: Completion) -> str:
    """How fast it was."""
    prompt_tokens, tokens = len(completion.prompt_token_ids), len(completion.token_ids)
    return (
        f"prompt {prompt_tokens} tokens, first token after {completion.ttft_s:.3f} s (TTFT); {tokens} tokens"
        f"{output.rate(completion.decode_tokens_per_s)}; finished by {completion.finish_reason}"
    )


COMMAND = Command(
    name="generate",
    summary="continue a prompt",
    description="Writes the continuation to stdout as it comes, then a line with the time to the first token (TTFT) "
    "and the decoding speed to stderr. A model with a chat template gets the prompt as the user's turn of a chat; "
    "--raw continues the text as it stands.",
    examples=(
        'jaxinfer generate --prompt "def fibonacci(n):"',
        "jaxinfer generate --model ~/models/Llama-3.2-1B-Instruct --prompt 'Why is the sky blue?' --max_new_tokens 300",
        "jaxinfer generate --prompt_file story.txt --raw --temperature 0.9 --min_p 0.05 --seed 7 --n 3",
        "jaxinfer generate --prompt 'import os' --temperature 0 --stop $'\\n\\n' --logprobs 5 --json",
        "jaxinfer generate --token_ids 1,2,3 --ignore_eos --max_new_tokens 64 --json",
    ),
    define=define,
    run=run,
    positional=("prompt",),
)
