"""How the answers of a chat are read: text, reasoning, and calls of the tools that were offered."""

import dataclasses
import json
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from jaxinfer import toolcalls
from jaxinfer.grammar import Grammar
from jaxinfer.server import answers, schemas
from jaxinfer.server.errors import ApiError
from jaxinfer.tokenizer import Tokenizer
from jaxinfer.toolcalls import Format, Markers

_ANYTHING: dict[str, Any] = {"type": "object"}


@dataclass(frozen=True)
class Manner:
    """offered: the tools as a chat template takes them. format: how calls are written, where there
    may be some. forced: the form of a call that has to come. reasoning: the markers of a section
    that may come first. single: only the first call counts.
    """

    offered: tuple[dict[str, Any], ...] = ()
    format: Format | None = None
    forced: Grammar | None = None
    reasoning: Markers | None = None
    single: bool = False

    @property
    def names(self) -> list[str]:
        return [tool["function"]["name"] for tool in self.offered]

    def special(self, tokenizer: Tokenizer) -> bool:
        """Whether a marker is a special token, which a decoder would leave out."""
        marks = [] if self.format is None else [self.format.begin, self.format.end]
        marks += [] if self.reasoning is None else [self.reasoning.begin, self.reasoning.end]
        added = tokenizer.backend.get_added_tokens_decoder().values()
        return any(one.special and one.content in marks for one in added)

    def begins_within(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> bool:
        """Whether the prompt has opened the reasoning section."""
        if self.reasoning is None:
            return False
        end = tokenizer.decode(prompt[-16:], skip_special_tokens=False)
        return end.rstrip().endswith(self.reasoning.begin)

    def form(self, other: Grammar | None, within: bool) -> Grammar | None:
        """What constrains an answer: a forced call, or another form that is asked for; behind the
        reasoning where the prompt has opened that.
        """
        form = self.forced or other
        if form is None or not within or self.reasoning is None:
            return form
        return dataclasses.replace(form, free_until=self.reasoning.end)


def manner(body: schemas.ChatRequest, template: str) -> Manner:
    """How answers to `body` come from a model with this chat template. ApiError where a tool is
    chosen that is not there, or the template cannot offer any.
    """
    reasoning = toolcalls.reasoning_of(template)
    choice = body.tool_choice or "auto"
    chosen = choice.function.name if isinstance(choice, schemas.NamedTool) else None
    if not body.tools:
        if chosen or choice == "required":
            raise ApiError(400, "tool_choice: there are no tools to call", param="tool_choice")
        return Manner(reasoning=reasoning)
    if choice == "none":
        return Manner(reasoning=reasoning)
    offered = tuple(tool.model_dump(exclude_none=True) for tool in body.tools)
    names = [tool.function.name for tool in body.tools]
    if len(set(names)) < len(names):
        raise ApiError(400, "tools: two have the same name", param="tools")
    if chosen is not None and chosen not in names:
        raise ApiError(400, f"tool_choice: no tool {chosen!r} among {names}", param="tool_choice")
    format = toolcalls.detect(template)
    if choice != "auto":
        schema = {t.function.name: t.function.parameters or _ANYTHING for t in body.tools}
        wanted = [(name, schema[name]) for name in ([chosen] if chosen else names)]
        return Manner(offered, format, _forced(format, wanted), reasoning, single=True)
    if "tools" not in template:
        raise ApiError(
            400,
            "tools: this model's chat template knows none; leave them out, or force a call with "
            "tool_choice",
            param="tools",
        )
    return Manner(offered, format, None, reasoning, single=body.parallel_tool_calls is False)


def _forced(format: Format, tools: Sequence[tuple[str, dict[str, Any]]]) -> Grammar:
    try:
        return toolcalls.forced(format, tools)
    except ValueError as error:
        raise ApiError(400, f"tools: {error}", param="tools") from error


class Speech:
    """One answer, read as it grows."""

    def __init__(self, manner: Manner, within: bool):
        self._reader = toolcalls.Reader(
            manner.format, manner.names, manner.reasoning, reasons=within
        )
        self._single = manner.single
        self.text = self.reasoning = ""
        self.calls: list[answers.ToolCall] = []

    def push(self, text: str, last: bool) -> list[dict[str, Any]]:
        """What a piece of text adds, as the deltas of a stream."""
        events = self._reader.push(text)
        return list(self._deltas([*events, *(self._reader.finish() if last else ())]))

    def _deltas(self, events: Iterable[toolcalls.Event]) -> Iterable[dict[str, Any]]:
        for event in events:
            match event:
                case toolcalls.Text():
                    self.text += event.text
                    yield {"content": event.text}
                case toolcalls.Reasoning():
                    self.reasoning += event.text
                    yield {"reasoning_content": event.text}
                case toolcalls.Call() | toolcalls.Arguments() if event.index and self._single:
                    pass
                case toolcalls.Call():
                    function = answers.CalledFunction(name=event.name, arguments="")
                    call = answers.ToolCall(id=f"call_{secrets.token_hex(12)}", function=function)
                    self.calls.append(call)
                    yield {"tool_calls": [{"index": event.index, **call.model_dump()}]}
                case toolcalls.Arguments():
                    self.calls[event.index].function.arguments += event.text
                    more = {"arguments": event.text}
                    yield {"tool_calls": [{"index": event.index, "function": more}]}

    def message(self) -> answers.ChatMessage:
        """The whole answer."""
        return answers.ChatMessage(
            content=self.text if self.text or not self.calls else None,
            reasoning_content=self.reasoning or None,
            tool_calls=self.calls or None,
        )


def as_template_reads(call: dict[str, Any]) -> dict[str, Any]:
    """A call of an earlier turn with its arguments as data, which is what templates write out."""
    function = dict(call["function"])
    try:
        arguments = json.loads(function["arguments"])
    except ValueError:
        return call
    if not isinstance(arguments, dict):
        return call
    return {**call, "function": {**function, "arguments": arguments}}
