"""How models write calls of tools and where they reason."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxinfer import grammar


@dataclass(frozen=True)
class Markers:
    """What a reasoning section stands between."""

    begin: str
    end: str

    def __post_init__(self):
        if not self.begin or not self.end:
            raise ValueError(
                f"reasoning markers: required two texts; received {self.begin!r}, {self.end!r}; "
                "give both"
            )


@dataclass(frozen=True)
class Format:
    """begin, end: around the calls; "" where there is none. bare: a call may also stand without
    them, if it begins the answer and names a known tool. listed: calls may stand in a JSON array.
    named: the name may stand before its arguments, outside the JSON. arguments: what the format's
    own template calls them (the reader takes either name). separator: between calls. padding:
    around a forced call, inside begin and end.
    """

    name: str
    begin: str = ""
    end: str = ""
    bare: bool = False
    listed: bool = False
    named: bool = False
    arguments: str = "arguments"
    separator: str = ""
    padding: str = ""


FORMATS = {
    format.name: format
    for format in (
        # Qwen 2.5, Qwen 3, Nous Hermes: their chat templates
        Format("hermes", "<tool_call>", "</tool_call>", padding="\n"),
        # Llama 3.1 and later, JSON calls: its chat template
        Format("llama3", "<|python_tag|>", bare=True, arguments="parameters", separator=";"),
        # Mistral, tokenizers v3 to v13
        Format("mistral", "[TOOL_CALLS]", listed=True, named=True),
        Format("json", bare=True, listed=True),
    )
}
THINK = Markers("<think>", "</think>")


def detect(template: str) -> Format:
    """The format that a chat template writes calls in; plain JSON where it shows none."""
    for name in ("hermes", "mistral"):
        if FORMATS[name].begin in template:
            return FORMATS[name]
    if "<|python_tag|>" in template or "ipython" in template:
        return FORMATS["llama3"]
    return FORMATS["json"]


def reasoning_of(template: str) -> Markers | None:
    """The markers of reasoning that a chat template knows, or None."""
    return THINK if THINK.end in template else None


def forced(
    format: Format,
    tools: Sequence[tuple[str, Mapping[str, Any]]],
    limits: grammar.Limits = grammar.DEFAULT,
) -> grammar.Grammar:
    """One call of one of `tools`, (name, JSON schema of its arguments), in this format."""
    return grammar.tool_call(
        tools,
        prefix="" if format.bare else format.begin,
        suffix=format.end,
        arguments=format.arguments,
        as_list=format.listed and not format.bare,
        padding=format.padding,
        limits=limits,
    )
