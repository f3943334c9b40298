"""Flags that say what text to work on."""

import sys
from pathlib import Path

from absl.flags import FlagValues

from jaxinfer.cli.flags import IDS, TEXT, Flags
from jaxinfer.model import Model
from jaxinfer.tokenizer import Tokenizer

# For models that were never taught a chat form. The texts end where the next speaker would begin.
PLAIN = (
    "{% for m in messages %}{{ m.role | capitalize }}: {{ m.content | trim }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
PLAIN_STOPS = ("\n\nUser:", "\n\nSystem:", "\n\nAssistant:")


def define(flags: Flags) -> None:
    flags.group("Prompt")
    flags.many("prompt", TEXT, "the text")
    flags.text("prompt_file", "a file that holds the text; - is standard input", form="FILE")
    flags.one(
        "token_ids",
        IDS,
        "token ids in place of text, like 1,2,3; works without a tokenizer",
        form="IDS",
    )


def define_template(flags: Flags) -> None:
    flags.text(
        "chat_template",
        "the chat template: one of the model's by name, a jinja file, jinja source, or 'plain' "
        "(User: ... Assistant: ...)",
        form="NAME|FILE",
    )


def read(values: FlagValues) -> list[str | tuple[int, ...]]:
    """The prompts: texts or token ids. ValueError where there is none, or more than one kind."""
    given = [name for name in ("prompt", "prompt_file", "token_ids") if values[name].present]
    if len(given) != 1:
        got = " and ".join(f"--{name}" for name in given) or "none"
        raise ValueError(f"needs one of --prompt, --prompt_file and --token_ids, got {got}")
    if given == ["token_ids"]:
        return [values.token_ids]
    if given == ["prompt"]:
        return list(values.prompt)
    return [read_text(values.prompt_file)]


def read_text(name: str) -> str:
    """A UTF-8 file, or standard input for "-"."""
    data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: needs UTF-8 text, got bytes that are not ({error})") from error


def template(values: FlagValues, tokenizer: Tokenizer) -> dict[str, str]:
    """Options of `apply_chat_template` that --chat_template asks for."""
    wanted = values.chat_template
    if wanted is None:
        return {}
    if wanted in tokenizer.chat_templates or "{" in wanted:
        return {"template": wanted}
    if wanted == "plain":
        return {"template": PLAIN}
    if Path(wanted).is_file():
        return {"template": read_text(wanted)}
    names = ", ".join([*tokenizer.chat_templates, "plain"])
    raise ValueError(
        f"--chat_template needs a name among {names}, a file, or jinja source, got {wanted!r}"
    )


def wraps(values: FlagValues, tokenizer: Tokenizer | None) -> bool:
    """Whether a text becomes the user's turn of a chat: where there is a template, unless --raw."""
    if tokenizer is None or values.raw:
        return False
    return values.chat_template is not None or "default" in tokenizer.chat_templates


def encode(
    values: FlagValues, model: Model, prompts: list[str | tuple[int, ...]]
) -> list[list[int]]:
    """Token ids of prompts; texts are wrapped as the user's turn where the model has a chat
    template, unless --raw.
    """
    tokenizer = model.tokenizer
    if tokenizer is None or not wraps(values, tokenizer):
        return [model.encode(prompt) for prompt in prompts]
    options = template(values, tokenizer)

    return [
        tokenizer.encode_chat([{"role": "user", "content": prompt}], **options)
        if isinstance(prompt, str)
        else model.encode(prompt)
        for prompt in prompts
    ]
