"""jaxinfer chat: talk with a model; the cache keeps the conversation, so a turn reads only what is
new.
"""

import contextlib
import dataclasses
import json
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from absl.flags import FlagValues

from jaxinfer.cli import generate, model, output, prompt, sampling
from jaxinfer.cli.flags import Command, Flags
from jaxinfer.model import Model
from jaxinfer.request import SamplingParams
from jaxinfer.tokenizer import Tokenizer

try:
    import readline
except ImportError:  # not on every system; lines are then plain
    readline = None

HELP = """/help            this list
/reset           forget the conversation (the system prompt stays)
/system TEXT     set the system prompt and forget the conversation; without TEXT, remove it
/save FILE       write the conversation to FILE as JSON
/exit            leave (also Ctrl-D)
A message of several lines stands between two lines of three double quotes. Ctrl-C stops an answer.
"""


def define(flags: Flags) -> None:
    flags.group("Conversation")
    flags.text("system", "a system prompt: how the model should behave")
    prompt.define_template(flags)
    sampling.define(flags, leave_out=("n", "logprobs", "logprobs_mode"))
    model.define(flags)


def run(values: FlagValues) -> None:
    params = sampling.read(values)
    loaded = model.read(values, max_slots=1)
    if loaded.tokenizer is None:
        raise ValueError(
            "chat needs a tokenizer, and this model has none (no tokenizer.json); use jaxinfer generate --token_ids"
        )
    if values.chat_template is None and "default" not in loaded.tokenizer.chat_templates:
        raise ValueError(
            "chat needs a chat template, and this model has none: it was not taught to converse; try "
            "--chat_template=plain, or jaxinfer generate"
        )
    if values.chat_template == "plain":
        params = dataclasses.replace(params, stop=(*params.stop, *prompt.PLAIN_STOPS))
    template = prompt.template(values, loaded.tokenizer)
    Conversation(loaded, loaded.tokenizer, params, template, values.system).talk(_lines())


class Conversation:
    """The messages so far, and what a line typed by the user does to them."""

    def __init__(
        self,
        loaded: Model,
        tokenizer: Tokenizer,
        params: SamplingParams,
        template: dict[str, str],
        system: str | None = None,
    ):
        self._model, self._tokenizer, self._params, self._template = (
            loaded,
            tokenizer,
            params,
            template,
        )
        self.messages: list[dict[str, str]] = []
        self._begin(system)

    def _begin(self, system: str | None) -> None:
        self._system = system
        self.messages = [{"role": "system", "content": system}] if system else []

    def talk(self, lines: Iterator[str]) -> None:
        """Every line to its answer, until they end or one says /exit."""
        if output.is_terminal(sys.stdin):
            if readline is not None:
                readline.set_auto_history(True)
            output.note("/help lists commands, Ctrl-D leaves")
        for line in lines:
            if not line.strip():
                continue
            if not line.startswith("/"):
                self._answer(line)
            elif line.strip() == "/exit":
                return
            else:
                self._command(*line.strip().partition(" ")[::2])

    def _command(self, word: str, rest: str) -> None:
        if word == "/help":
            output.note(HELP)
        elif word == "/reset":
            self._begin(self._system)
            output.note("a new conversation")
        elif word == "/system":
            self._begin(rest.strip() or None)
            output.note("a new conversation" + (" with this system prompt" if self._system else ""))
        elif word == "/save" and rest.strip():
            self._save(Path(rest.strip()).expanduser())
        else:
            output.note(
                f"unknown command {word!r}; /help lists them"
                if word != "/save"
                else "/save needs a file name"
            )

    def _save(self, path: Path) -> None:
        try:
            path.write_text(
                json.dumps(self.messages, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
            )
        except OSError as error:
            output.note(f"cannot write {path}: {error.strerror}")
        else:
            output.note(f"{len(self.messages)} messages written to {path}")

    def _answer(self, text: str) -> None:
        """Stream the answer to `text`; what fails leaves the conversation as it was."""
        messages = [*self.messages, {"role": "user", "content": text}]
        try:
            ids = self._tokenizer.encode_chat(messages, **self._template)
            most = self._model.config.max_position
            room = most - len(ids)
            if room < 1:
                raise ValueError(
                    f"the conversation fills the model's {most} positions; /reset begins a new one"
                )
            new = min(self._params.max_new_tokens, room)
            params = dataclasses.replace(
                self._params, max_new_tokens=new, min_tokens=min(self._params.min_tokens, new)
            )
            chunks = self._model.stream(ids, params, reuse=True)
        except ValueError as error:
            output.note(str(error))
            return
        answer, completion = "", None
        with contextlib.closing(chunks), _interrupt() as interrupted:
            for chunk in chunks:
                answer += chunk.text
                output.write(chunk.text)
                completion = chunk.completion
                if interrupted.is_set():
                    break
        output.write("\n")
        if interrupted.is_set():
            output.note("stopped")
        self.messages = [*messages, {"role": "assistant", "content": answer}]
        if completion is not None:
            output.note(generate.stats(completion))


@contextlib.contextmanager
def _interrupt() -> Iterator[threading.Event]:
    """Within the block the first Ctrl-C sets the event, so that a step is not torn apart; a second
    one is as usual.
    """
    asked = threading.Event()

    def ask(number, frame):
        asked.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def _lines() -> Iterator[str]:
    """What the user says, a message at a time."""
    while True:
        try:
            line = _line("> ")
            if line.strip() == '"""':
                parts = []
                while (line := _line(". ")).strip() != '"""':
                    parts.append(line)
                line = "\n".join(parts)
        except EOFError:
            if output.is_terminal(sys.stdin):
                output.write("\n")
            return
        yield line


def _line(ask: str) -> str:
    return input(ask if output.is_terminal(sys.stdin) else "")


COMMAND = Command(
    name="chat",
    summary="talk with a model in the terminal",
    description="Reads a line, streams the answer, and remembers the conversation; each turn reads only what is new, "
    "because the cache keeps the rest. Lines may also come from a pipe. /help lists what else can be typed.",
    examples=(
        "jaxinfer chat --model Qwen/Qwen2.5-0.5B-Instruct",
        "jaxinfer chat --model ~/models/Llama-3.2-1B-Instruct --system 'Answer in one sentence.' --temperature 0",
        "jaxinfer chat --chat_template plain       # a base model, as User: ... Assistant: ...",
        "printf 'Hello\\nAnd again\\n' | jaxinfer chat --model ~/models/SmolLM2-360M-Instruct",
    ),
    define=define,
    run=run,
)
