"""What may be asked for, and the errors for the rest."""

import json

import pytest

from jaxinfer import grammar
from jaxinfer.grammar import Limits


def nested(depth: int) -> dict:
    schema: dict = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: grammar.json_schema(nested(100)), "at most 64 levels"),
        (lambda: grammar.json_schema("[" * 10_000), "at most 64 levels"),
        (lambda: grammar.json_schema('{"a": ' * 10_000), "at most 64 levels"),
        (lambda: grammar.json_schema("{"), "required JSON"),
        (lambda: grammar.json_schema("[1]"), "a JSON object"),
        (lambda: grammar.json_schema({"enum": ["x" * 2**16]}), "at most 65536 bytes"),
        (lambda: grammar.json_schema('{"title": "' + "y" * 2**16), "at most 65536 bytes"),
        (lambda: grammar.json_schema({"const": float("nan")}), "JSON data"),
        (lambda: grammar.json_schema({"const": {1, 2}}), "JSON data"),
        (lambda: grammar.json_schema({"const": "\ud800"}), "Unicode text"),
        (
            lambda: grammar.json_schema({"properties": {f"p{i}": {} for i in range(1001)}}),
            "at most 1000 properties",
        ),
        (lambda: grammar.regex("a" * 4097), "at most 4096 characters"),
        (lambda: grammar.regex(""), "not empty"),
        (lambda: grammar.choice([]), "1 to 4096 texts"),
        (lambda: grammar.choice("yes"), "a list of texts"),
        (lambda: grammar.choice(["a", ""]), "not empty"),
        (lambda: grammar.choice(str(i) for i in range(10**9)), "1 to 4096 texts"),
        (lambda: grammar.lark("x" * 2**17), "at most 65536 bytes"),
        (lambda: grammar.tool_call([]), "at least one"),
    ],
)
def test_what_is_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_limits_are_the_callers():
    assert grammar.json_schema(nested(100), Limits(depth=500))
    with pytest.raises(ValueError, match="at most 3 levels"):
        grammar.json_schema(nested(4), Limits(depth=3))


def test_brackets_in_strings_do_not_count():
    schema = {"const": '[{"\\' * 100}
    assert grammar.json_schema(json.dumps(schema)) == grammar.json_schema(schema)


def test_a_key_is_of_the_content():
    one = grammar.json_schema({"type": "object", "properties": {}})
    assert one.key == grammar.json_schema('{ "type": "object", "properties": {} }').key
    others = [grammar.regex("a"), grammar.choice(["a"]), grammar.lark("a"), grammar.json_object()]
    assert len({each.key for each in [one, *others]}) == 5
