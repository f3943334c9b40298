"""What a body says its answer must look like, as a grammar. Knows the fields, nothing of HTTP."""

from collections.abc import Callable
from typing import Any

from jaxinfer import grammar
from jaxinfer.grammar import Grammar
from jaxinfer.server import schemas
from jaxinfer.server.errors import ApiError

_KINDS: dict[str, Callable[[Any], Grammar]] = {
    "json": grammar.json_schema,
    "regex": grammar.regex,
    "choice": grammar.choice,
    "grammar": grammar.lark,
    "json_object": lambda wanted: grammar.json_object(),
}


def asked(body: schemas.Common) -> tuple[str, Grammar] | None:
    """The field that asks for a form, and the form; None where any text will do. ApiError where
    there are several, or one is wrong.
    """
    found = {**_format(body), **_guided(body)}
    if len(found) > 1:
        names = ", ".join(found)
        raise ApiError(400, f"one form of an answer can be asked for, got {names}; give one")
    for name, (kind, value) in found.items():
        try:
            return name, _KINDS[kind](value)
        except ValueError as error:
            raise ApiError(400, f"{name}: {error}", param=name) from error
    return None


def _format(body: schemas.Common) -> dict[str, tuple[str, Any]]:
    """OpenAI's fields."""
    name, form = "response_format", getattr(body, "response_format", None)
    text = getattr(body, "text", None)
    if text is not None:
        name, form = "text", text.format
    match form:
        case schemas.JsonObject():
            return {name: ("json_object", True)}
        case schemas.JsonSchema():
            return {name: ("json", form.json_schema.schema_)}
        case schemas.NamedJsonSchema():
            return {name: ("json", form.schema_)}
    return {}


def _guided(body: schemas.Common) -> dict[str, tuple[str, Any]]:
    """vLLM's fields."""
    found = {}
    for kind in ("json", "regex", "choice", "grammar"):
        value = getattr(body, f"guided_{kind}", None)
        if value is not None:
            found[f"guided_{kind}"] = (kind, value)
    outputs = getattr(body, "structured_outputs", None)
    asked = {} if outputs is None else outputs.model_dump(by_alias=True)
    for kind, value in asked.items():
        if value is not None and value is not False:
            found[f"structured_outputs.{kind}"] = (kind, value)
    return found
