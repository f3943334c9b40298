"""Text to events: the same whatever the pieces, no part of a marker shown, text where it is no
call.
"""

import json

import pytest

from jaxinfer.toolcalls import FORMATS, THINK, Arguments, Call, Reader, Reasoning, Text

A = '{"city": "Z\\"ü}rich", "days": [1, {"x": null}]}'
HERMES, LLAMA, MISTRAL, PLAIN = (FORMATS[name] for name in ("hermes", "llama3", "mistral", "json"))
ONE = [("call", "f", A)]


def call(name="f", arguments=A, key="arguments") -> str:
    return f'{{"name": "{name}", "{key}": {arguments}}}'


def reasoning(text):
    return [("reasoning", text)]


def text(text):
    return [("text", text)]


# format, reasoning markers, begins within them, the whole text, its events
CASES = {
    "hermes": (HERMES, f"<tool_call>\n{call()}\n</tool_call>", ONE),
    "hermes after text": (
        HERMES,
        f"Let me see.\n\n<tool_call>{call()}</tool_call>\n",
        [*text("Let me see."), *ONE],
    ),
    "hermes twice": (
        HERMES,
        f"<tool_call>\n{call()}\n</tool_call>\n<tool_call>\n{call('g', '{}')}\n</tool_call>",
        [*ONE, ("call", "g", "{}")],
    ),
    "hermes, then text": (
        HERMES,
        f"<tool_call>{call()}</tool_call> Done <b",
        [*ONE, *text(" Done <b")],
    ),
    "hermes cut": (
        HERMES,
        '<tool_call>{"name": "f", "arguments": {"a": [1',
        [("call", "f", '{"a": [1')],
    ),
    "hermes cut in the end marker": (HERMES, f"<tool_call>{call()}</tool", ONE),
    "hermes without arguments": (
        HERMES,
        '<tool_call>{"name":"f"}</tool_call>',
        [("call", "f", "{}")],
    ),
    "hermes, arguments first": (
        HERMES,
        '<tool_call>{"arguments": {"a": 1}, "name": "f", "id": "x"}</tool_call>',
        [("call", "f", '{"a": 1}')],
    ),
    "hermes, arguments as text": (
        HERMES,
        f"<tool_call>{call(arguments=json.dumps(A))}</tool_call>",
        ONE,
    ),
    "hermes, not JSON": (
        HERMES,
        "a <tool_call>f(x)</tool_call> b",
        text("a <tool_call>f(x)</tool_call> b"),
    ),
    "hermes, no name": (
        HERMES,
        'a\n<tool_call>{"arguments": {"a": 1}}</tool_call>',
        text('a\n<tool_call>{"arguments": {"a": 1}}</tool_call>'),
    ),
    "hermes, another object": (HERMES, '<tool_call>{"x": 1}', text('<tool_call>{"x": 1}')),
    "hermes, a wrong bracket": (
        HERMES,
        '<tool_call>{"name": "f", "arguments": {"a": 1]}',
        [("call", "f", '{"a": 1'), *text("]}")],
    ),
    "hermes, marker twice": (
        HERMES,
        f"<tool_call> <tool_call>{call()}</tool_call>",
        [*text("<tool_call> "), *ONE],
    ),
    "hermes, half a marker": (HERMES, "x <tool_ca", text("x <tool_ca")),
    "hermes, JSON is an answer": (HERMES, call(), text(call())),
    "llama": (LLAMA, call(key="parameters"), ONE),
    "llama, marked": (LLAMA, f"<|python_tag|>{call(key='parameters')}", ONE),
    "llama, marked and unknown": (
        LLAMA,
        f"<|python_tag|>{call('other', '{}')}",
        [("call", "other", "{}")],
    ),
    "llama twice": (
        LLAMA,
        f"{call()}; {call('g', '{}', 'parameters')}",
        [*ONE, ("call", "g", "{}")],
    ),
    "llama, an unknown tool": (LLAMA, call("other"), text(call("other"))),
    "llama, code": (LLAMA, "<|python_tag|>print(1)", text("<|python_tag|>print(1)")),
    "llama, an answer in JSON": (LLAMA, '{"a": {"name": 1}} x', text('{"a": {"name": 1}} x')),
    "llama, text first": (LLAMA, f"so: {call()}", text(f"so: {call()}")),
    "mistral": (
        MISTRAL,
        f"[TOOL_CALLS] [{call()}, {call('g', '{}')}]",
        [*ONE, ("call", "g", "{}")],
    ),
    "mistral, named": (
        MISTRAL,
        f"Well.[TOOL_CALLS]f{A}[TOOL_CALLS]g-2[ARGS]{{}}",
        [*text("Well."), *ONE, ("call", "g-2", "{}")],
    ),
    "mistral, text": (
        MISTRAL,
        "[TOOL_CALLS] nothing, really",
        text("[TOOL_CALLS] nothing, really"),
    ),
    "mistral, half": (MISTRAL, "[TOOL_CALLS]get_we", text("[TOOL_CALLS]get_we")),
    "json": (PLAIN, f" {call()}", ONE),
    "json list": (PLAIN, f"[{call()},\n{call('g', '{}')}]\n", [*ONE, ("call", "g", "{}")]),
    "json, an answer": (PLAIN, '[1, 2, {"name": "f"}]', text('[1, 2, {"name": "f"}]')),
    "json, text": (PLAIN, "  just text ", text("  just text ")),
    "none": (None, f"<tool_call>{call()}", text(f"<tool_call>{call()}")),
}
THOUGHTS = {
    "section": (
        False,
        "\n<think>\nhm, 1 < 2 \n</think>\n\nYes",
        [*reasoning("hm, 1 < 2"), *text("Yes")],
    ),
    "prompted": (True, "hm</think> Yes", [*reasoning("hm"), *text("Yes")]),
    "cut": (False, "<think>hm </thi", reasoning("hm </thi")),
    "none": (False, " <thin air> <think>x", text(" <thin air> <think>x")),
    "empty": (True, "\n</think>ok", text("ok")),
    "call": (
        False,
        f"<think>a <tool_call>{{}}\n</think>\n<tool_call>{call()}</tool_call>",
        [*reasoning("a <tool_call>{}"), *ONE],
    ),
}


def joined(events) -> list[tuple]:
    found: list[list] = []
    for event in events:
        match event:
            case Text(text) | Reasoning(text):
                kind = "text" if isinstance(event, Text) else "reasoning"
                if found and found[-1][0] == kind:
                    found[-1][1] += text
                else:
                    found.append([kind, text])
            case Call(index, name):
                found.append(["call", name, ""])
                assert index == sum(each[0] == "call" for each in found) - 1
            case Arguments(index, text):
                assert index == sum(each[0] == "call" for each in found) - 1
                assert found[-1][0] == "call"
                found[-1][2] += text
    return [tuple(each) for each in found]


def read(reader, pieces) -> list[tuple]:
    events = [event for piece in pieces for event in reader.push(piece)]
    assert all(not hasattr(event, "text") or event.text for event in events)
    return joined([*events, *reader.finish()])


def splits(whole: str, rng):
    """In one piece, in two at every place, character by character, and at random."""
    yield [whole]
    yield list(whole)
    for at in range(1, len(whole)):
        yield [whole[:at], whole[at:]]
    for _ in range(20):
        places = sorted(rng.integers(0, len(whole) + 1, 5).tolist())
        yield [whole[a:b] for a, b in zip([0, *places], [*places, len(whole)], strict=True)]


@pytest.mark.parametrize("name", CASES)
def test_calls_however_the_text_comes(rng, name):
    format, whole, want = CASES[name]
    for pieces in splits(whole, rng):
        reader = Reader(format, ["f", "g"])
        assert read(reader, pieces) == want, pieces
        assert reader.calls == sum(each[0] == "call" for each in want)


@pytest.mark.parametrize("name", THOUGHTS)
def test_reasoning_however_the_text_comes(rng, name):
    reasons, whole, want = THOUGHTS[name]
    for pieces in splits(whole, rng):
        assert read(Reader(HERMES, ["f"], THINK, reasons=reasons), pieces) == want, pieces


@pytest.mark.parametrize("format", [None, *FORMATS.values()])
def test_broken_text_gives_the_same_events_in_any_pieces(rng, seed, format):
    """Random bits of calls, markers and text: no exception, no loss, independent of the pieces."""
    bits = [
        "<tool_call>",
        "</tool_call>",
        "<|python_tag|>",
        "[TOOL_CALLS]",
        "[ARGS]",
        "f",
        "{",
        "}",
    ]
    bits += ['{"name": "f"', ', "arguments": ', '"', "\\", "[", "]", ",", ";", " ", "\n", "<", "é"]
    bits += [call(), "<think>", "</think>", '{"name": "f", "parameters": {"a": "']
    for _ in range(60):
        whole = "".join(rng.choice(bits, size=rng.integers(1, 9)))
        ways = [["".join(whole)], list(whole)]
        ways += list(splits(whole, rng))[-5:]
        results = [read(Reader(format, ["f"], THINK), pieces) for pieces in ways]
        assert all(found == results[0] for found in results), f"{seed=} {whole!r}"


def test_text_is_shown_as_it_comes_and_arguments_too():
    reader = Reader(HERMES, ["f"])
    assert reader.push("Hello <") == [Text("Hello")]
    assert reader.push("b> there") == [Text(" <b> there")]
    assert reader.push(' <tool_call>{"name": "f", "arguments": {"a"') == [
        Call(0, "f"),
        Arguments(0, '{"a"'),
    ]
    assert reader.push(": 1") == [Arguments(0, ": 1")]
    bare = Reader(LLAMA, ["f"])
    assert bare.push('{"answer": "so') == [Text('{"answer": "so')]
