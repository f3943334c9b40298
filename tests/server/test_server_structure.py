"""Answers in the form that was asked for, and calls of tools, through the official client."""

import itertools
import json
import re
from typing import Literal

import jsonschema
import pydantic
import pytest

from jaxinfer.grammar.vocabulary import token_bytes
from jaxinfer.request import MAX_BIAS
from jaxinfer.server import schemas, tools
from jaxinfer.server.errors import ApiError
from jaxinfer.toolcalls import FORMATS, THINK
from tests.server.conftest import NAME

MESSAGES = [{"role": "user", "content": "how said"}]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"enum": ["x", "yy"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "who", "schema": SCHEMA, "strict": True}}
FUNCTION = {"name": "look_up", "description": "looks up", "parameters": SCHEMA}
TOOL = {"type": "function", "function": FUNCTION}
OTHER = {"type": "function", "function": {**FUNCTION, "name": "other"}}
NO_TOOLS, ANY_TOOLS = "{{ messages }}", "{{ messages }}{{ tools }}"


class Who(pydantic.BaseModel):
    name: Literal["x", "yy"]
    age: int = pydantic.Field(ge=0, le=99)


@pytest.fixture(scope="module")
def no_blanks(served) -> dict[str, int]:
    """A bias against blanks, which a model without sense may write between any two parts of JSON;
    where only they are allowed, they come.
    """
    tokenizer = served.model.tokenizer
    texts, _ = token_bytes(tokenizer, served.model.config.vocab_size)
    found = {str(i): -100 for i, text in enumerate(texts) if text.strip() != text}
    assert 0 < len(found) <= MAX_BIAS
    return found


def texts(client, stream=False, **fields) -> list[str]:
    """The answers of a chat, whole."""
    answer = client.chat.completions.create(
        model=NAME, messages=MESSAGES, stream=stream, max_tokens=60, **fields
    )
    if not stream:
        return [choice.message.content for choice in answer.choices]
    found: dict[int, str] = {}
    for chunk in answer:
        for choice in chunk.choices:
            found[choice.index] = found.get(choice.index, "") + (choice.delta.content or "")
    return [found[index] for index in sorted(found)]


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_follows_a_schema(client, seed, no_blanks, stream):
    fields = {"response_format": FORMAT, "logit_bias": no_blanks}
    for found in texts(client, stream, n=2, seed=seed, **fields):
        jsonschema.validate(json.loads(found), SCHEMA)
    free = texts(client, stream, n=2, seed=seed)
    assert not all(found.startswith("{") for found in free)


def test_the_official_client_parses_its_own_classes(client, no_blanks):
    answer = client.chat.completions.parse(
        model=NAME,
        messages=MESSAGES,
        response_format=Who,
        max_tokens=60,
        logit_bias=no_blanks,
    )
    assert isinstance(answer.choices[0].message.parsed, Who)


def test_a_response_follows_a_schema(client):
    form = {"type": "json_schema", "name": "who", "schema": SCHEMA, "strict": True}
    for seed in range(30):  # until one ends in time
        answer = client.responses.create(
            model=NAME, input="who", text={"format": form}, extra_body={"seed": seed}
        )
        assert answer.output_text.startswith("{")
        if answer.status == "completed":
            break
    jsonschema.validate(json.loads(answer.output_text), SCHEMA)
    assert answer.text.format.schema_ == SCHEMA


@pytest.mark.parametrize(
    ("field", "value", "pattern"),
    [
        ("guided_regex", "[0-9]{3}-[a-c]", r"\d{3}-[abc]"),
        ("guided_choice", ["yes", "no"], "yes|no"),
        ("guided_grammar", 'start: "<" /[a-z]{2}/ ">"', "<[a-z]{2}>"),
        ("guided_json", SCHEMA, r'\{.*"age".*\}'),
        ("guided_json", json.dumps(SCHEMA), r'\{.*"age".*\}'),
        ("structured_outputs", {"regex": "a|b"}, "a|b"),
        ("structured_outputs", {"json": SCHEMA}, r'\{.*"age".*\}'),
        ("response_format", FORMAT, r'\{.*"age".*\}'),
    ],
)
@pytest.mark.parametrize("chat", [False, True])
def test_every_field_constrains(served, seed, no_blanks, chat, field, value, pattern):
    body = {"messages": MESSAGES} if chat else {"prompt": "how"}
    body |= {field: value, "seed": seed, "logit_bias": no_blanks, "max_tokens": 60}
    path = "/v1/chat/completions" if chat else "/v1/completions"
    answer = served.post(path, **body).json()
    (choice,) = answer["choices"]
    text = choice["message"]["content"] if chat else choice["text"]
    assert re.fullmatch(pattern, text, re.DOTALL), text
    assert choice["finish_reason"] == "stop"


def test_any_object_will_do(client):
    (found,) = texts(client, response_format={"type": "json_object"}, temperature=0)
    assert found.lstrip().startswith("{")


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "other"}}]
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_forced_call_comes(client, seed, no_blanks, choice, stream):
    answer = client.chat.completions.create(
        model=NAME,
        messages=MESSAGES,
        tools=[TOOL, OTHER],
        tool_choice=choice,
        max_tokens=90,
        seed=seed,
        logit_bias=no_blanks,
        stream=stream,
    )
    if stream:
        name = arguments = text = ""
        reasons = []
        for chunk in answer:
            for one in chunk.choices:
                text += one.delta.content or ""
                reasons.append(one.finish_reason)
                for call in one.delta.tool_calls or ():
                    name += call.function.name or ""
                    arguments += call.function.arguments or ""
        assert reasons[-1] == "tool_calls"
        assert text == ""
    else:
        (one,) = answer.choices
        (call,) = one.message.tool_calls
        name, arguments = call.function.name, call.function.arguments
        assert one.finish_reason == "tool_calls"
        assert one.message.content is None
    jsonschema.validate(json.loads(arguments), SCHEMA)
    assert name in (("look_up", "other") if choice == "required" else ("other",))


@pytest.mark.parametrize(
    ("fields", "words", "param"),
    [
        ({"guided_regex": "(", "response_format": FORMAT}, "give one", None),
        ({"guided_regex": "("}, "guided_regex: regex: required", "guided_regex"),
        ({"guided_choice": []}, "guided_choice", "guided_choice"),
        ({"guided_json": "{"}, "required JSON", "guided_json"),
        ({"guided_grammar": "nothing"}, "guided_grammar", "guided_grammar"),
        ({"response_format": {"type": "xml"}}, "response_format", "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {
            "type": "object", "properties": {"a": {"$ref": "#/nowhere"}}}}}},
         "response_format", "response_format"),
        ({"tool_choice": "required"}, "no tools to call", "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "x"}}},
         "no tool 'x'", "tool_choice"),
        ({"tools": [TOOL, TOOL]}, "same name", "tools"),
        ({"tools": [TOOL]}, "template knows none", "tools"),
        ({"tools": [TOOL], "tool_choice": "required", "response_format": FORMAT}, "drop one",
         "response_format"),
    ],
)  # fmt: skip
def test_what_cannot_be_followed_is_refused(served, fields, words, param):
    answer = served.post("/v1/chat/completions", messages=MESSAGES, max_tokens=4, **fields)
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]
    assert answer.json()["error"]["param"] == param


def chat(**fields) -> schemas.ChatRequest:
    return schemas.ChatRequest.model_validate({"messages": MESSAGES, **fields})


def spoken(manner, text, rng, within=False):
    """A speech over text in random pieces, and its deltas put together."""
    speech = tools.Speech(manner, within)
    cuts = sorted({0, len(text), *rng.integers(0, len(text) + 1, 5).tolist()})
    pieces = [text[a:b] for a, b in itertools.pairwise(cuts)]
    found: dict = {"content": "", "reasoning_content": "", "calls": {}}
    for i, piece in enumerate(pieces):
        for delta in speech.push(piece, last=i == len(pieces) - 1):
            for name in ("content", "reasoning_content"):
                found[name] += delta.get(name, "")
            for call in delta.get("tool_calls", ()):
                one = found["calls"].setdefault(call["index"], ["", ""])
                one[0] += call["function"].get("name", "")
                one[1] += call["function"].get("arguments", "")
    message = speech.message()
    assert found["content"] == (message.content or "")
    assert found["reasoning_content"] == (message.reasoning_content or "")
    said = [[c.function.name, c.function.arguments] for c in message.tool_calls or ()]
    assert [found["calls"][i] for i in sorted(found["calls"])] == said
    return message


def test_an_answer_is_reasoning_text_and_calls(rng):
    template = ANY_TOOLS + THINK.begin + THINK.end + FORMATS["hermes"].begin
    manner = tools.manner(chat(tools=[TOOL, OTHER]), template)
    assert manner.forced is None
    text = (
        "<think>hm</think>Let me see. <tool_call>\n"
        '{"name": "look_up", "arguments": {"name": "x", "age": 3}}\n</tool_call>\n'
        '<tool_call>\n{"name": "other", "arguments": {}}\n</tool_call>'
    )
    message = spoken(manner, text, rng)
    assert message.reasoning_content == "hm"
    assert message.content == "Let me see."
    assert [call.function.name for call in message.tool_calls] == ["look_up", "other"]
    assert json.loads(message.tool_calls[0].function.arguments) == {"name": "x", "age": 3}
    assert len({call.id for call in message.tool_calls}) == 2
    single = tools.manner(chat(tools=[TOOL, OTHER], parallel_tool_calls=False), template)
    assert len(spoken(single, text, rng).tool_calls) == 1
    silent = tools.manner(chat(tools=[TOOL], tool_choice="none"), template)
    assert silent.offered == ()
    assert spoken(silent, text, rng).tool_calls is None
    assert spoken(manner, "well</think>yes", rng, within=True).reasoning_content == "well"
    assert spoken(tools.manner(chat(), NO_TOOLS), text, rng).content == text


def test_a_form_begins_behind_the_reasoning_that_a_prompt_opens(served):
    tokenizer = served.model.tokenizer
    template = ANY_TOOLS + THINK.begin + THINK.end
    manner = tools.manner(chat(tools=[TOOL], tool_choice="required"), template)
    for text, within in (("so <think>\n", True), ("so <think> well", False), ("so", False)):
        assert manner.begins_within(tokenizer, tokenizer.encode(text)) == within
        assert (manner.form(None, within).free_until == THINK.end) == within
    with pytest.raises(ApiError, match="no tools"):
        tools.manner(chat(tool_choice="required"), template)


def test_templates_get_the_arguments_of_earlier_calls_as_data():
    call = {"id": "1", "type": "function", "function": {"name": "a", "arguments": '{"b": [1]}'}}
    assert tools.as_template_reads(call)["function"]["arguments"] == {"b": [1]}
    for broken in ("{", "[1]"):
        kept = {**call, "function": {"name": "a", "arguments": broken}}
        assert tools.as_template_reads(kept) == kept
