"""Compiled grammars: masks against every token tried, random walks that end against validators."""

import asyncio
import contextlib
import dataclasses
import json
import re
import threading
import time

import jsonschema
import numpy as np
import pytest

from jaxinfer import grammar
from jaxinfer.grammar import compiler as compiling
from jaxinfer.grammar.compiler import Compiler, GrammarError, Matcher
from jaxinfer.grammar.vocabulary import token_bytes
from jaxinfer.tokenizer import Tokenizer
from tests import fresh_tokenizers as fresh

LLAMA = ["<|begin|>", "<|end|>", "<|python_tag|>"]
KINDS = {
    "byte_level": (lambda rng: fresh.byte_level(rng, LLAMA), "<|begin|>", "<|end|>"),
    "llama2": (fresh.llama2, "<s>", "</s>"),
    "gemma": (fresh.gemma, "<bos>", "<eos>"),
    "unigram": (fresh.unigram, "<s>", "</s>"),
}
SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["x", "yy"]}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def load(rng, tmp_path, kind: str = "byte_level") -> Tokenizer:
    make, bos, eos = KINDS[kind]
    config = {"bos_token": bos, "eos_token": eos}
    return Tokenizer.load(fresh.write_folder(tmp_path / kind, make(rng), config, "llama"))


@pytest.fixture
def tokenizer(rng, tmp_path):
    return load(rng, tmp_path)


@pytest.fixture
def compiler(tokenizer):
    made = Compiler(tokenizer, vocab_size=tokenizer.vocab_size + 5)
    yield made
    made.close()


def allowed(matcher: Matcher, vocab_size: int) -> set[int]:
    bits = np.unpackbits(matcher.mask().view(np.uint8), bitorder="little")
    assert not bits[vocab_size:].any()
    return set(np.flatnonzero(bits).tolist())


def walk(compiled, tokenizer, rng, most: int = 600) -> str | None:
    """The text of a random answer; None where it did not end."""
    matcher, ids = compiled.matcher(), []
    while not matcher.finished:
        if len(ids) == most:
            return None
        options = sorted(allowed(matcher, compiled.vocab_size))
        ends = [token for token in options if token in tokenizer.eos_ids]
        ids.append(ends[0] if ends and rng.random() < 0.3 else int(rng.choice(options)))
        matcher.advance(ids[-1])
    texts, _ = token_bytes(tokenizer, compiled.vocab_size)
    return b"".join(texts[token] for token in ids[:-1]).decode()


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_the_bytes_they_add_to_a_text(rng, tmp_path, kind):
    tokenizer = load(rng, tmp_path, kind)
    texts, special = token_bytes(tokenizer, tokenizer.vocab_size + 3)
    assert texts[-3:] == [b""] * 3
    assert set(tokenizer.eos_ids) <= set(special)
    start = tokenizer.encode("a", add_special_tokens=False)
    for _ in range(20):
        ids = tokenizer.encode(fresh.random_text(rng, 8), add_special_tokens=False)
        plain = [token for token in ids if token not in special]
        whole = tokenizer.decode([*start, *plain]).removeprefix(tokenizer.decode(start))
        assert b"".join(texts[token] for token in plain).decode(errors="replace") == whole


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("extra", [0, 5, 40])
def test_masks_hold_exactly_the_tokens_that_may_follow(rng, tmp_path, kind, extra):
    """Regular languages, where Python's own prefix test decides: a token is allowed where some
    completion of the text with it matches.
    """
    tokenizer = load(rng, tmp_path, kind)
    V = tokenizer.vocab_size + extra
    compiled = Compiler(tokenizer, vocab_size=V, workers=1).compile(grammar.regex("(the|a)( hot)*"))
    language = {f"{word}{' hot' * n}" for word in ("the", "a") for n in range(40)}
    prefixes = {text[:n].encode() for text in language for n in range(len(text) + 1)}
    texts, special = token_bytes(tokenizer, V)
    for _ in range(3):
        matcher, text = compiled.matcher(), b""
        for _ in range(6):
            want = {
                token
                for token, piece in enumerate(texts)
                if piece and token not in special and text + piece in prefixes
            }
            if text.decode() in language:
                want |= set(tokenizer.eos_ids)
            assert allowed(matcher, V) == want
            token = int(rng.choice(sorted(want)))
            matcher.advance(token)
            if matcher.finished:
                break
            text += texts[token]


def random_schema(rng, depth: int = 3) -> dict:
    kinds = ["integer", "number", "string", "boolean", "null", "enum"]
    kind = rng.choice(kinds + ["array", "object", "anyOf", "ref"] * (depth > 0))
    if kind == "enum":
        return {"enum": [1, "b", None, {"c": [True]}][: rng.integers(1, 5)]}
    if kind == "integer":
        low = int(rng.integers(-50, 50))
        return {"type": kind, "minimum": low, "maximum": low + int(rng.integers(0, 100))}
    if kind == "string":
        return {"type": kind, "minLength": 1, "maxLength": int(rng.integers(1, 9))}
    if kind == "array":
        least = int(rng.integers(0, 3))
        items = random_schema(rng, depth - 1)
        return {"type": kind, "items": items, "minItems": least, "maxItems": least + 2}
    if kind == "object":
        names = [f"k{i}" for i in range(rng.integers(0, 4))]
        return {
            "type": kind,
            "properties": {name: random_schema(rng, depth - 1) for name in names},
            "required": [name for name in names if rng.random() < 0.6],
            "additionalProperties": False,
        }
    if kind == "anyOf":
        return {kind: [random_schema(rng, depth - 1) for _ in range(2)]}
    if kind == "ref":
        return {"$ref": "#/$defs/other"}
    return {"type": str(kind)}


def test_answers_to_random_schemas_validate(rng, seed, compiler, tokenizer):
    ended = 0
    for _ in range(60):
        schema = random_schema(rng) | {"$defs": {"other": random_schema(rng, 0)}}
        compiled = compiler.compile(grammar.json_schema(schema))
        text = walk(compiled, tokenizer, rng)
        if text is not None:
            ended += 1
            jsonschema.validate(json.loads(text), schema)
    assert ended > 40, f"{seed=}"


@pytest.mark.parametrize(
    ("asked", "check"),
    [
        (grammar.regex(r"[a-c]{2,5}/[0-9]+\n?"), lambda t: re.fullmatch(r"[a-c]{2,5}/\d+\n?", t)),
        (grammar.choice(["yes", "no", '"\\ \n😀']), lambda t: t in ("yes", "no", '"\\ \n😀')),
        (
            grammar.lark('start: "(" start ")" | "x"+'),
            lambda t: re.fullmatch(r"(\(*)x+(\)*)", t) and t.count("(") == t.count(")"),
        ),
        (grammar.json_object(), lambda t: isinstance(json.loads(t), dict)),
        (
            dataclasses.replace(grammar.choice(["a", "b"]), free_until="o"),
            lambda t: re.fullmatch(r"[^o]*o[ab]", t),
        ),
        (
            dataclasses.replace(grammar.lark('start: "q" w\nw: "1"'), prefix="<", suffix="/>"),
            lambda t: t == "<q1/>",
        ),
        (
            grammar.tool_call([("f", SCHEMA), ("g", {"type": "object"})], prefix="<tool_call>"),
            lambda t: json.loads(t.removeprefix("<tool_call>"))["name"] in "fg",
        ),
        (
            grammar.tool_call([("f", SCHEMA)], arguments="parameters", as_list=True),
            lambda t: jsonschema.validate(json.loads(t)[0]["parameters"], SCHEMA) is None,
        ),
    ],
)
def test_answers_are_of_the_language(rng, compiler, tokenizer, asked, check):
    compiled = compiler.compile(asked)
    texts = [walk(compiled, tokenizer, rng) for _ in range(15)]
    found = [text for text in texts if text is not None]
    assert found
    assert all(check(text) for text in found), found


def test_a_marker_that_is_a_special_token_is_that_token(compiler, tokenizer):
    token = tokenizer.backend.token_to_id("<|python_tag|>")
    asked = dataclasses.replace(grammar.choice(["a"]), prefix="<|python_tag|>")
    assert allowed(compiler.compile(asked).matcher(), compiler.vocab_size) == {token}
    asked = dataclasses.replace(grammar.choice(["a"]), free_until="<|python_tag|>")
    matcher = compiler.compile(asked).matcher()
    assert len(allowed(matcher, compiler.vocab_size)) > 200
    matcher.advance(token)
    spelled = tokenizer.encode("a", add_special_tokens=False)[-1]
    assert allowed(matcher, compiler.vocab_size) == {spelled}


def test_a_matcher_goes_back_and_refuses_what_does_not_follow(rng, compiler, tokenizer):
    compiled = compiler.compile(grammar.json_schema(SCHEMA))
    matcher, masks, taken = compiled.matcher(), [], []
    while not matcher.finished:
        masks.append(matcher.mask())
        options = sorted(allowed(matcher, compiled.vocab_size))
        taken.append(int(rng.choice(options)))
        matcher.advance(taken[-1])
    with pytest.raises(GrammarError, match="after the end"):
        matcher.advance(taken[-1])
    back = int(rng.integers(1, len(taken) + 1))
    matcher.rollback(back)
    assert not matcher.finished
    np.testing.assert_array_equal(matcher.mask(), masks[-back])
    for token in taken[-back:]:
        matcher.advance(token)
    assert matcher.finished
    with pytest.raises(ValueError, match="required 0 to"):
        matcher.rollback(len(taken) + 1)
    fresh_one = compiled.matcher()
    wrong = min(set(range(compiled.vocab_size)) - allowed(fresh_one, compiled.vocab_size))
    with pytest.raises(GrammarError):
        fresh_one.advance(wrong)
    np.testing.assert_array_equal(compiled.matcher().mask(), masks[0])


def test_a_mask_is_written_where_it_is_wanted(compiler):
    matcher = compiler.compile(grammar.regex("a+")).matcher()
    rows = np.zeros((3, -(-compiler.vocab_size // 32)), np.uint32)
    matcher.mask(rows[1])
    np.testing.assert_array_equal(rows[1], matcher.mask())
    assert not rows[0].any()
    assert not rows[2].any()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (grammar.regex("("), "unclosed group"),
        (grammar.regex("(?=a)a"), "look-around"),
        (grammar.lark("start: nowhere"), "unknown name"),
        (grammar.json_schema({"$ref": "#"}), "no text satisfies"),
        (grammar.json_schema({"$ref": "http://localhost:1/x"}), "not present"),
        (grammar.json_schema({"type": "array", "uniqueItems": True}), "uniqueItems"),
        (grammar.json_schema({"allOf": [{"type": "string"}, {"type": "null"}]}), "nsatisfiable"),
    ],
)
def test_what_cannot_be_followed_is_refused(compiler, asked, said):
    with pytest.raises(GrammarError, match=said):
        compiler.compile(asked)


HOSTILE = {
    "repeats": grammar.regex("((((a{1,1000}){1,1000}){1,1000}){1,1000}){1,1000}"),
    "optional": grammar.regex("(a?){2000}a{2000}"),
    "exponential": grammar.regex("(a|a)*(a|aa)*(.*x.*){20}(a|b)*a(a|b){1000}"),
    "rules": grammar.lark(
        "start: a0\n" + "\n".join(f"a{i}: a{i + 1}" for i in range(4000)) + '\na4000: "x"'
    ),
    "brackets": grammar.lark("start: " + "(" * 30_000 + '"a"' + ")" * 30_000),
    "ambiguous": grammar.lark('start: start start start | "a" | ""'),
    "references": grammar.json_schema(
        {"$ref": "#/$defs/d0"}
        | {
            "$defs": {
                **{
                    f"d{i}": {"type": "array", "items": {"$ref": f"#/$defs/d{i + 1}"}}
                    for i in range(900)
                },
                "d900": {"type": "string"},
            }
        }
    ),
    "doubling": grammar.json_schema(
        {"$ref": "#/$defs/d0"}
        | {
            "$defs": {
                **{f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(60)},
                "d60": {"type": "string"},
            }
        }
    ),
    "wide": grammar.json_schema(
        {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(1000)}}
    ),
    "long": grammar.json_schema({"type": "string", "minLength": 2**31, "maxLength": 2**32}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_grammar_costs_an_error_at_most(rng, compiler, tokenizer, name):
    """It is compiled, or refused; it is followed, or left with an error: in a few seconds, and the
    process lives.
    """
    with contextlib.suppress(GrammarError):
        walk(compiler.compile(HOSTILE[name]), tokenizer, rng, most=40)
    assert walk(compiler.compile(grammar.choice(["ok"])), tokenizer, rng) == "ok"


def test_compiled_grammars_are_kept_by_content(tokenizer):
    compiler = Compiler(tokenizer, vocab_size=tokenizer.vocab_size, kept=2)
    first = compiler.compile(grammar.regex("a"))
    assert compiler.compile(grammar.regex("a")) is first
    compiler.compile(grammar.regex("b"))
    compiler.compile(grammar.regex("c"))
    assert compiler.compile(grammar.regex("a")) is not first


def test_a_caller_waits_only_so_long(tokenizer, monkeypatch):
    going, release = threading.Event(), threading.Event()

    def slow(grammar):
        going.set()
        release.wait(30)
        return 'body: "a"'

    monkeypatch.setattr(compiling, "_body", slow)
    compiler = Compiler(tokenizer, vocab_size=tokenizer.vocab_size, workers=1, timeout_s=0.05)
    asked = grammar.regex("a")
    with pytest.raises(GrammarError, match="compiles within"):
        compiler.compile(asked)
    with pytest.raises(GrammarError, match="compiles within"):
        asyncio.run(compiler.prepare(asked))
    assert going.is_set()
    release.set()
    for _ in range(200):
        if compiler.submit(asked).done():
            break
        time.sleep(0.05)
    assert asyncio.run(compiler.prepare(asked)) is compiler.compile(asked)


def test_a_tokenizer_without_eos_is_refused(tokenizer):
    with pytest.raises(ValueError, match="EOS"):
        Compiler(dataclasses.replace(tokenizer, eos_ids=()), vocab_size=tokenizer.vocab_size)
