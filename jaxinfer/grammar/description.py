"""A grammar as its caller describes it, checked against limits before anything is compiled."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

Kind = Literal["json_schema", "regex", "choice", "lark", "tool_call"]


@dataclass(frozen=True)
class Limits:
    """Of what a caller may send. source_bytes: any description as UTF-8. depth: nested objects and
    arrays of a schema. properties: names under `properties`, in the whole schema. regex_chars: of a
    regular expression. choices: texts to choose from.
    """

    source_bytes: int = 2**16
    depth: int = 64
    properties: int = 1000
    regex_chars: int = 4096
    choices: int = 4096


DEFAULT = Limits()


@dataclass(frozen=True)
class Grammar:
    """One description; made by the functions below. source: JSON for a schema (keys in the order
    given, which answers follow), choices and tools, else the expression itself.

    prefix, suffix: text around what is described; where a special token has this name, that token.
    free_until: text that ends what comes first and may be anything (a reasoning section); it too
    may be a special token. key: the same for the same description.
    """

    kind: Kind
    source: str
    prefix: str = ""
    suffix: str = ""
    free_until: str = ""
    key: str = field(init=False, compare=False)

    def __post_init__(self):
        parts = (self.kind, self.source, self.prefix, self.suffix, self.free_until)
        digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        object.__setattr__(self, "key", digest)


def json_schema(schema: Mapping[str, Any] | str, limits: Limits = DEFAULT) -> Grammar:
    """A JSON value that validates against `schema` (JSON Schema, as an object or its text).

    ValueError: not JSON, not an object, or over the limits. What llguidance cannot promise to
    honour (`uniqueItems`, an `oneOf` that is not exclusive, ...) is refused when it is compiled.
    """
    name = "json_schema"
    if isinstance(schema, str):
        _check_bytes(name, schema, limits)
        _check_brackets(name, schema, limits)
        try:
            schema = json.loads(schema)
        except ValueError as cause:
            raise _error(name, "JSON", str(cause), "check the text") from cause
    if not isinstance(schema, Mapping):
        raise _error(name, "a JSON object", type(schema).__name__, "pass {'type': ...}")
    _check_schema(name, schema, limits)
    try:
        source = json.dumps(schema, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as cause:
        raise _error(name, "JSON data", str(cause), "pass plain JSON types") from cause
    _check_bytes(name, source, limits)
    return Grammar("json_schema", source)


def json_object() -> Grammar:
    """Any JSON object."""
    return Grammar("json_schema", '{"type":"object"}')


def regex(pattern: str, limits: Limits = DEFAULT) -> Grammar:
    """A text that the whole of `pattern` matches; syntax of Rust's regex crate, so no look-around
    and no back-references.
    """
    _check_text("regex", pattern, limits)
    if len(pattern) > limits.regex_chars:
        required = f"at most {limits.regex_chars} characters"
        raise _error("regex", required, f"{len(pattern)}", "shorten it, or write a grammar")
    return Grammar("regex", pattern)


def choice(texts: Iterable[str], limits: Limits = DEFAULT) -> Grammar:
    """Exactly one of `texts`."""
    name = "choice"
    if isinstance(texts, str | bytes | Mapping) or not isinstance(texts, Iterable):
        raise _error(name, "a list of texts", repr(texts)[:80], "pass ['yes', 'no']")
    found = list(islice(texts, limits.choices + 1))
    if not 1 <= len(found) <= limits.choices:
        received = "none" if not found else f"more than {limits.choices}"
        raise _error(name, f"1 to {limits.choices} texts", received, "give as many")
    for text in found:
        _check_text(name, text, limits)
    source = json.dumps(list(dict.fromkeys(found)), ensure_ascii=False)
    _check_bytes(name, source, limits)
    return Grammar("choice", source)


def lark(source: str, limits: Limits = DEFAULT) -> Grammar:
    """A context-free grammar with a rule `start`, in llguidance's dialect of Lark."""
    _check_text("grammar", source, limits)
    return Grammar("lark", source)


def tool_call(
    tools: Sequence[tuple[str, Mapping[str, Any]]],
    *,
    prefix: str = "",
    suffix: str = "",
    arguments: str = "arguments",
    as_list: bool = False,
    padding: str = "",
    limits: Limits = DEFAULT,
) -> Grammar:
    """A call of one of `tools`, (name, JSON schema of its arguments), as a model writes it: prefix,
    {"name": ..., `arguments`: {...}}, suffix. as_list: in a JSON array. padding: around the call,
    within prefix and suffix.
    """
    if not tools:
        raise _error("tools", "at least one", "none", "name the tools that may be called")
    schemas = [[name, json.loads(json_schema(schema, limits).source)] for name, schema in tools]
    source = json.dumps(
        {"tools": schemas, "arguments": arguments, "as_list": as_list, "padding": padding},
        ensure_ascii=False,
    )
    _check_bytes("tools", source, limits)
    return Grammar("tool_call", source, prefix=prefix, suffix=suffix)


def _check_schema(name: str, schema: Mapping[str, Any], limits: Limits) -> None:
    """Depth and properties of JSON data, without recursion."""
    properties, waiting = 0, [(schema, 1)]
    while waiting:
        value, depth = waiting.pop()
        if depth > limits.depth:
            raise _error(name, f"at most {limits.depth} levels", "more", "flatten it")
        if isinstance(value, Mapping):
            found = value.get("properties")
            properties += len(found) if isinstance(found, Mapping) else 0
            inner = value.values()
        else:
            inner = value
        if properties > limits.properties:
            raise _error(name, f"at most {limits.properties} properties", "more", "ask for fewer")
        waiting += [(one, depth + 1) for one in inner if isinstance(one, Mapping | list | tuple)]


def _check_brackets(name: str, text: str, limits: Limits) -> None:
    """Refuses JSON text that nests too deeply for a recursive parser."""
    depth, quoted, escaped = 0, False, False
    for character in text:
        if quoted:
            quoted = escaped or character != '"'
            escaped = character == "\\" and not escaped
            continue
        quoted = character == '"'
        depth += (character in "[{") - (character in "]}")
        if depth > limits.depth:
            raise _error(name, f"at most {limits.depth} levels", "more", "flatten it")


def _check_text(name: str, text: Any, limits: Limits) -> None:
    if not isinstance(text, str) or not text:
        raise _error(name, "a text that is not empty", repr(text)[:80], "pass one")
    _check_bytes(name, text, limits)


def _check_bytes(name: str, text: str, limits: Limits) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError as cause:
        raise _error(name, "Unicode text", str(cause), "drop lone surrogates") from cause
    if size > limits.source_bytes:
        raise _error(name, f"at most {limits.source_bytes} bytes", f"{size}", "shorten it")


def _error(name: str, required: str, received: str, remedy: str) -> ValueError:
    return ValueError(f"{name}: required {required}; received {received}; {remedy}")
