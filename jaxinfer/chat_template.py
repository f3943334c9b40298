"""Renders a chat template: chat messages to the text a model was trained on.

A chat template is a program that comes with a checkpoint, written for the environment that
transformers gives it; this is that environment. It runs in jinja2's immutable sandbox, sees JSON
values only, and has a budget of steps and characters, so that a hostile template or message
costs an error and not the process. Whatever goes wrong in it is one ValueError. This module
knows nothing of tokenizers.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache, wraps
from itertools import islice
from typing import Any

import jinja2
import jinja2.ext
import jinja2.filters
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import jinja2.visitor
from jinja2.exceptions import SecurityError

MAX_TEMPLATE_CHARS = 2**20
MAX_CHAT_CHARS = 2**25  # of the rendered chat, and of each string made on the way
MAX_TEMPLATE_STEPS = 2**19  # loop iterations and calls of one rendering

MAX_WIDTH = 1000  # of padding, indentation, a batch

_WIDE_FORMAT = re.compile(r"[%{][^%{}]*(\d{4}|\*|\{)")
_BUDGET = "_budget"
_REASONING = ("reasoning_content", "thinking", "reasoning")
_FAILURES = (
    jinja2.TemplateError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)


def render(template: str, messages: Sequence[Mapping[str, Any]], **variables) -> str:
    """The text of `messages` ({"role": ..., "content": ...}) in the format of `template`.

    `variables` are what else the template sees: special tokens, `tools`, `documents`,
    `add_generation_prompt`. All of it must be JSON data. Keys with None are dropped from messages.

    Raises ValueError: no messages, not JSON data, an error in the template or raised by it, or a
    template that needs more than MAX_TEMPLATE_STEPS or MAX_CHAT_CHARS.
    """
    if not messages:
        raise ValueError("messages: required at least one; received none; add a user message")
    if len(template) > MAX_TEMPLATE_CHARS:
        raise ValueError(
            f"chat template: required at most {MAX_TEMPLATE_CHARS} characters; received "
            f"{len(template)}; pass another template"
        )
    try:
        visible = {name: _plain(name, value) for name, value in variables.items()}
        visible["messages"] = [_message(message) for message in messages]
    except RecursionError as cause:
        raise ValueError(
            "messages: required JSON data; received data nested too deeply; flatten it"
        ) from cause
    try:
        return _compile(template).render({**visible, _BUDGET: _Budget()})
    except _FAILURES as cause:
        line = getattr(cause, "lineno", None)
        where = f" (line {line} of the template)" if line is not None else ""
        raise ValueError(
            "chat template: required messages and variables that it can render; received "
            f"{type(cause).__name__}{where}: {cause}; change the messages, or pass another template"
        ) from cause


def _plain(name: str, value: Any) -> Any:
    """A copy of `value` made of JSON types, whose methods the sandbox knows."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    for base in (str, int, float):  # enums and the like, without their own methods
        if isinstance(value, base):
            return getattr(base, f"__{base.__name__}__")(value)
    if isinstance(value, Mapping):
        return {_plain(name, key): _plain(name, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(name, item) for item in value]
    raise ValueError(
        f"{name}: required JSON data (dict, list, str, int, float, bool, None); received "
        f"{type(value).__name__}; convert it first"
    )


def _message(message: Any) -> dict[str, Any]:
    message = _plain("messages", message)
    if not isinstance(message, dict):
        raise ValueError(
            "messages: required dicts with a role and content; received "
            f"{type(message).__name__}; pass [{{'role': 'user', 'content': ...}}]"
        )
    message = {key: value for key, value in message.items() if value is not None}
    for name in _REASONING:  # three names for one thing; templates read the first or the second
        if name in message:
            return {"thinking": message[name], **message, "reasoning_content": message[name]}
    return message


# What a template may use


class _Budget:
    """Steps and characters that one rendering has left."""

    def __init__(self):
        self.steps = MAX_TEMPLATE_STEPS
        self.chars = MAX_CHAT_CHARS

    def spend(self, steps: int = 0, chars: int = 0) -> None:
        self.steps -= steps
        self.chars -= chars
        if self.steps < 0:
            raise SecurityError(f"more than {MAX_TEMPLATE_STEPS} steps")
        _limit_size(MAX_CHAT_CHARS - self.chars)


def _limit_size(size: int) -> None:
    if size > MAX_CHAT_CHARS:
        raise SecurityError(f"more than {MAX_CHAT_CHARS} characters")


def _limit_widths(arguments: Iterable) -> None:
    for argument in arguments:
        if isinstance(argument, int) and abs(argument) > MAX_WIDTH:
            raise SecurityError(f"a width of {argument}, more than {MAX_WIDTH}")
        if isinstance(argument, str) and _WIDE_FORMAT.search(argument):
            raise SecurityError(f"a format that may be wider than {MAX_WIDTH}")


@jinja2.pass_context
def _metered(context: jinja2.runtime.Context, items: Iterable) -> list:
    """The items of a loop, paid for."""
    budget = context[_BUDGET]
    listed = list(islice(items, budget.steps + 1))
    budget.spend(steps=len(listed))
    return listed


@jinja2.pass_context
def _written(context: jinja2.runtime.Context, value: Any) -> str:
    """What a template writes, paid for."""
    text = str(value)
    context[_BUDGET].spend(chars=len(text))
    return text


def _concatenated(*parts: Any) -> str:
    texts = [str(part) for part in parts]
    _limit_size(sum(map(len, texts)))
    return "".join(texts)


def _replaced(text: Any, old: Any, new: Any, count: int = -1) -> str:
    text, old, new = str(text), str(old), str(new)
    _limit_size(len(text) + text.count(old) * len(new))
    return text.replace(old, new, -1 if count is None else count)


@jinja2.pass_environment
def _joined(
    environment: jinja2.Environment, items: Iterable, d: Any = "", attribute: Any = None
) -> str:
    if attribute is not None:
        items = map(jinja2.filters.make_attrgetter(environment, attribute), items)
    texts, separator, size = [], str(d), 0
    for item in items:
        texts.append(str(item))
        size += len(texts[-1]) + len(separator)
        _limit_size(size)
    return separator.join(texts)


def _narrow(filter_function: Callable) -> Callable:
    """A filter that refuses huge widths and counts."""

    @wraps(filter_function)
    def narrow(*args, **kwargs):
        _limit_widths([*args, *kwargs.values()])
        return filter_function(*args, **kwargs)

    return narrow


class _Metering(jinja2.visitor.NodeTransformer):
    """Rewrites a parsed template so that loops, text and concatenation go through the above."""

    def visit_For(self, node: jinja2.nodes.For) -> jinja2.nodes.Node:
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "_metered", [])
        return node

    def visit_TemplateData(self, node: jinja2.nodes.TemplateData) -> jinja2.nodes.Node:
        return jinja2.nodes.Const(node.data, lineno=node.lineno)

    def visit_Concat(self, node: jinja2.nodes.Concat) -> jinja2.nodes.Node:
        self.generic_visit(node)
        return _filtered(node.nodes[0], "_concatenated", node.nodes[1:])


def _filtered(node: jinja2.nodes.Node, name: str, arguments: list) -> jinja2.nodes.Filter:
    return jinja2.nodes.Filter(node, name, arguments, [], None, None, lineno=node.lineno)


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The sandbox, with loops and calls that cost and no way to make huge values."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        tree = _Metering().visit(super()._parse(source, name, filename))
        return tree.set_environment(self)

    def call(self, context: jinja2.runtime.Context, function: Any, *args, **kwargs) -> Any:
        context[_BUDGET].spend(steps=1)
        owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
        if isinstance(owner, str):
            if name == "replace":
                return _replaced(owner, *args, **kwargs)
            if name == "join":
                return _joined(self, *args, d=owner)
            _limit_widths(argument for argument in args if isinstance(argument, int))
        result = super().call(context, function, *args, **kwargs)
        if isinstance(result, str):
            _limit_size(len(result))
        return result

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _limit_widths([value.__self__])
        return wrapped

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any):
        sized = str | list | tuple
        if operator == "+" and isinstance(left, sized) and isinstance(right, sized):
            _limit_size(len(left) + len(right))
        elif operator == "*":
            for factor, other in ((left, right), (right, left)):
                if isinstance(factor, sized) and isinstance(other, int):
                    _limit_size(len(factor) * other)
                elif isinstance(factor, int):
                    _limit_size(factor.bit_length())
        elif operator == "**":
            _limit_widths([left, right])
        elif operator == "%" and isinstance(left, str):
            _limit_widths([left])
        return super().call_binop(context, operator, left, right)


class _Namespace(jinja2.utils.Namespace):
    """`namespace()` without names that begin with an underscore and without huge strings."""

    def __init__(*args, **kwargs):  # `self` is a name that a template may give
        self, args = args[0], args[1:]
        attributes = dict(*args, **kwargs)
        for name, value in attributes.items():
            _check_attribute(name, value)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_attribute(name, value)
        super().__setitem__(name, value)


def _check_attribute(name: Any, value: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"namespace attribute {name!r} begins with _")
    if isinstance(value, str):
        _limit_size(len(value))


class _Dict:
    """`dict(...)` without the attributes of the class."""

    def __call__(self, *args, **kwargs) -> dict:
        return dict(*args, **kwargs)

    def fromkeys(self, *args, **kwargs) -> dict:
        return dict.fromkeys(*args, **kwargs)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}` marks the assistant's words: here, just its body."""

    def __init__(self, environment: jinja2.Environment):
        super().__init__(environment)
        self.tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_body", [])
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    """JSON as it is; jinja2's own filter escapes HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


@lru_cache(maxsize=32)
def _compile(source: str) -> jinja2.Template:
    environment = _Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, jinja2.ext.loopcontrols],
        finalize=_written,
    )
    filters = environment.filters
    filters |= {name: _narrow(filters[name]) for name in ("batch", "center", "format", "indent")}
    filters |= {name: _narrow(filters[name]) for name in ("slice", "wordwrap")}
    filters |= {"replace": _replaced, "join": _joined, "tojson": _narrow(_tojson)}
    filters |= {"_metered": _metered, "_concatenated": _concatenated}
    del environment.globals["lipsum"]
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    return environment.from_string(source)
