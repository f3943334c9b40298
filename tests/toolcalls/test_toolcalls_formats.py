"""Formats: found in templates; a forced call is read back as what it is."""

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from jaxinfer.grammar.compiler import Compiler
from jaxinfer.grammar.vocabulary import token_bytes
from jaxinfer.tokenizer import Tokenizer
from jaxinfer.toolcalls import FORMATS, THINK, Call, Markers, Reader, detect, forced, reasoning_of
from tests import fresh_tokenizers as fresh

TEMPLATES = Path(__file__).parents[1] / "chat_templates"
SCHEMA = {
    "type": "object",
    "properties": {
        "n": {"type": "integer", "minimum": 0, "maximum": 99},
        "q": {"$ref": "#/$defs/Q"},
    },
    "required": ["n", "q"],
    "additionalProperties": False,
    "$defs": {"Q": {"enum": ["a", "b"]}},
}


@pytest.mark.parametrize(
    ("template", "name", "markers"),
    [
        ("qwen2.5", "hermes", None),
        ("qwen3", "json", THINK),
        ("llama3", "llama3", None),
        ("chatml", "json", None),
    ],
)
def test_a_template_shows_its_format(template, name, markers):
    source = (TEMPLATES / f"{template}.jinja").read_text()
    assert detect(source) is FORMATS[name]
    assert reasoning_of(source) == markers
    assert detect("{{ '[TOOL_CALLS] [' }}") is FORMATS["mistral"]


def test_markers_are_not_empty():
    with pytest.raises(ValueError, match="two texts"):
        Markers("<a>", "")


@pytest.mark.parametrize("special", [[], ["<tool_call>", "[TOOL_CALLS]"]])
@pytest.mark.parametrize("name", FORMATS)
def test_a_forced_call_is_read_back(rng, tmp_path, name, special):
    backend = fresh.byte_level(rng, ["<|begin|>", "<|end|>", *special])
    config = {"bos_token": "<|begin|>", "eos_token": "<|end|>"}
    tokenizer = Tokenizer.load(fresh.write_folder(tmp_path / "t", backend, config, "llama"))
    tools = [("get_n", SCHEMA), ("nothing", {"type": "object", "properties": {}})]
    tools[1][1]["additionalProperties"] = False
    compiler = Compiler(tokenizer, vocab_size=tokenizer.vocab_size, workers=1)
    compiled = compiler.compile(forced(FORMATS[name], tools))
    texts, _ = token_bytes(tokenizer, tokenizer.vocab_size)
    for _ in range(4):
        matcher, whole = compiled.matcher(), b""
        while True:
            bits = np.unpackbits(matcher.mask().view(np.uint8), bitorder="little")
            token = int(rng.choice(np.flatnonzero(bits)))
            matcher.advance(token)
            if matcher.finished:
                break
            whole += texts[token].removeprefix(b"\xff")
        reader = Reader(FORMATS[name], [tool for tool, _ in tools])
        events = [*reader.push(whole.decode()), *reader.finish()]
        assert isinstance(events[0], Call)
        arguments = "".join(event.text for event in events[1:])
        jsonschema.validate(json.loads(arguments), dict(tools)[events[0].name])
