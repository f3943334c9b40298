"""Detokenizer: equal to decoding everything at once, whatever the tokens and stop strings."""

import time
from collections.abc import Sequence

import numpy as np
import pytest

from jaxinfer.stream import Detokenizer
from tests import fresh_tokenizers

KINDS = ("byte_level", "llama2", "gemma", "unigram")


@pytest.fixture(scope="module")
def backends():
    rng = np.random.default_rng()
    return {
        "byte_level": fresh_tokenizers.byte_level(rng, ["<bos>", "<eos>"]),
        "llama2": fresh_tokenizers.llama2(rng),
        "gemma": fresh_tokenizers.gemma(rng),
        "unigram": fresh_tokenizers.unigram(rng),
    }


def cut(text: str, stops: Sequence[str]) -> tuple[str, str | None]:
    """The slow truth: read character by character until a stop string ends; the longest wins."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            stop = max(ending, key=len)
            return text[: end - len(stop)], stop
    return text, None


def is_beginning(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of `text` that is a proper beginning of a stop string."""
    return max(
        (n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0
    )


def random_stops(rng: np.random.Generator, text: str) -> list[str]:
    """Pieces of the text, pieces with one letter changed, and pieces that are nowhere."""
    stops = []
    for _ in range(rng.integers(0, 4)):
        start = int(rng.integers(len(text) + 1))
        stop = text[start : start + int(rng.integers(1, 9))] or "zz"
        if rng.random() < 0.5:
            stop += "\x00"
        stops.append(stop)
    return stops


@pytest.mark.parametrize("kind", KINDS)
def test_equals_decoding_at_once(backends, kind):
    backend = backends[kind]
    for seed in np.random.default_rng().integers(2**32, size=40):
        rng = np.random.default_rng(seed)
        text = fresh_tokenizers.random_text(rng, int(rng.integers(1, 25)))
        ids = backend.encode(text, add_special_tokens=bool(rng.integers(2))).ids
        whole = backend.decode(ids)
        stops = random_stops(rng, whole)
        include = bool(rng.integers(2))
        detokenizer = Detokenizer(backend.decode, stops, include_stop=include)
        pieces = []
        for count, token in enumerate(ids, start=1):
            pieces.append(detokenizer.push(token))
            assert "\ufffd" not in pieces[-1], f"{seed=}"
            assert detokenizer.text == "".join(pieces)
            if kind == "byte_level" and detokenizer.stopped is None:
                known = backend.decode(ids[:count]).rstrip("\ufffd")
                held = is_beginning(known, stops)
                assert detokenizer.text == known[: len(known) - held], f"{seed=}"
        pieces.append(detokenizer.finish())
        expected, stop = cut(whole, stops)
        assert detokenizer.stopped == stop, f"{seed=}"
        assert "".join(pieces) == expected + (stop if stop and include else ""), f"{seed=}"
        assert detokenizer.text == "".join(pieces)


def test_random_bytes_equal_decoding_at_once(backends):
    """Tokens that are no text: a byte-level decoder replaces each broken character for itself."""
    backend = backends["byte_level"]
    for seed in np.random.default_rng().integers(2**32, size=40):
        rng = np.random.default_rng(seed)
        ids = rng.integers(backend.get_vocab_size() + 20, size=int(rng.integers(1, 120))).tolist()
        for skip in (True, False):
            detokenizer = Detokenizer(backend.decode, skip_special_tokens=skip)
            text = "".join(map(detokenizer.push, ids)) + detokenizer.finish()
            assert text == backend.decode(ids, skip_special_tokens=skip), f"{seed=} {skip=}"


def by_runs(backend, ids: Sequence[int]) -> str:
    """Truth for byte fallback: text tokens as they are, runs of bytes as UTF-8 with U+FFFD."""
    text, run = "", b""
    for token in ids:
        piece = backend.id_to_token(token)
        if piece.startswith("<0x"):
            run += bytes([int(piece[3:5], 16)])
            continue
        text += run.decode("utf-8", errors="replace") + piece.replace("▁", " ")
        run = b""
    return text + run.decode("utf-8", errors="replace")


@pytest.mark.parametrize("kind", ["llama2", "gemma", "unigram"])
def test_random_byte_tokens_with_fallback(backends, kind):
    """Good characters between broken bytes are shown; U+FFFD stand where bytes are wrong."""
    backend = backends[kind]
    byte = [backend.token_to_id(f"<0x{value:02X}>") for value in range(256)]
    letter = backend.token_to_id("e")
    for seed in np.random.default_rng().integers(2**32, size=60):
        rng = np.random.default_rng(seed)
        ids = [letter]
        for _ in range(int(rng.integers(1, 40))):
            kind_of_piece = rng.random()
            if kind_of_piece < 0.6:
                ids += [byte[value] for value in rng.choice(["é", "日", "😀"]).encode()]
            elif kind_of_piece < 0.8:
                ids.append(byte[int(rng.integers(128, 256))])
            else:
                ids.append(letter)
        detokenizer = Detokenizer(backend.decode)
        text = "".join(map(detokenizer.push, ids)) + detokenizer.finish()
        strip = str.maketrans("", "", "\ufffd")
        assert text.count("e") == ids.count(letter), f"{seed=}"
        valid = set(by_runs(backend, ids).translate(strip))
        assert set(text.translate(strip)) <= valid | {"e"}, f"{seed=}"


@pytest.mark.parametrize("kind", ["llama2", "gemma", "unigram"])
def test_a_broken_byte_leaves_what_was_shown(backends, kind):
    backend = backends[kind]
    tokens = ["e", "<0xE6>", "<0x97>", "<0xA5>", "<0xFF>", "e"]
    detokenizer = Detokenizer(backend.decode)
    pieces = [detokenizer.push(backend.token_to_id(token)) for token in tokens]
    assert pieces == ["e", "", "", "日", "", "\ufffde"]
    assert detokenizer.finish() == ""


def test_stop_strings_that_overlap_themselves():
    for text, stops, expected, stop in (
        ("aaab", ["aab"], "a", "aab"),
        ("aabaabaac", ["aabaac"], "aab", "aabaac"),
        ("abcd", ["abcd", "bc"], "a", "bc"),
        ("xab", ["b", "xab"], "", "xab"),
        ("ababab", ["abac"], "ababab", None),
    ):
        detokenizer = Detokenizer(lambda ids, skip_special_tokens: "".join(map(chr, ids)), stops)
        shown = "".join(detokenizer.push(ord(letter)) for letter in text) + detokenizer.finish()
        assert (shown, detokenizer.stopped) == (expected, stop)


def test_a_stop_string_inside_one_token_ends_the_text():
    words = ["one ", "two END three", " four"]

    def decode(ids, skip_special_tokens):
        return "".join(words[token] for token in ids)

    detokenizer = Detokenizer(decode, ["END"])
    assert [detokenizer.push(token) for token in range(3)] == ["one ", "two ", ""]
    assert detokenizer.finish() == ""
    assert detokenizer.stopped == "END"


def test_unfinished_character_is_shown_at_the_end(backends):
    backend = backends["byte_level"]
    ids = backend.encode("😀", add_special_tokens=False).ids
    assert len(ids) == 4
    detokenizer = Detokenizer(backend.decode)
    assert [detokenizer.push(token) for token in ids[:3]] == ["", "", ""]
    assert detokenizer.finish() == backend.decode(ids[:3]) == "\ufffd"
    assert detokenizer.finish() == ""


@pytest.mark.parametrize("kind", KINDS)
def test_text_after_a_prompt_continues_it(backends, kind):
    backend = backends[kind]
    for seed in np.random.default_rng().integers(2**32, size=20):
        rng = np.random.default_rng(seed)
        ids = backend.encode(fresh_tokenizers.random_text(rng, 12)).ids
        end = int(rng.integers(2, len(ids)))
        prompt = backend.decode(ids[:end])
        if prompt.endswith("\ufffd") or prompt.strip() == "":
            continue
        detokenizer = Detokenizer(backend.decode, prompt_ids=ids[:end])
        text = "".join(map(detokenizer.push, ids[end:])) + detokenizer.finish()
        assert prompt + text == backend.decode(ids), f"{seed=}"


def test_skipped_special_tokens_keep_the_next_space(backends):
    backend = backends["llama2"]
    ids = [*backend.encode("the word", add_special_tokens=False).ids]
    eos, word = backend.token_to_id("</s>"), backend.encode("of", add_special_tokens=False).ids
    ids = [*ids, eos, eos, *word]
    detokenizer = Detokenizer(backend.decode)
    text = "".join(map(detokenizer.push, ids)) + detokenizer.finish()
    assert text == backend.decode(ids) == "the word of"


@pytest.mark.parametrize("kind", KINDS)
def test_cost_is_linear(backends, kind):
    """Ids handed to the decoder, for text and for the worst: broken bytes and unused ids."""
    backend = backends[kind]
    decoded = 0

    def decode(ids, skip_special_tokens):
        nonlocal decoded
        decoded += len(ids)
        return backend.decode(ids, skip_special_tokens=skip_special_tokens)

    rng = np.random.default_rng()
    broken = backend.token_to_id("<0xFF>")
    broken = broken if broken is not None else backend.token_to_id("ÿ") or 300
    text = backend.encode(fresh_tokenizers.random_text(rng, 400)).ids
    worst = [[broken] * 2000, [backend.get_vocab_size() + 7] * 2000, [1] * 2000]
    for ids in (text, *worst):
        decoded = 0
        detokenizer = Detokenizer(decode, ["never"])
        start = time.perf_counter()
        for token in ids:
            detokenizer.push(token)
        detokenizer.finish()
        assert decoded <= 60 * len(ids)
        assert time.perf_counter() - start < 30


def test_an_empty_stop_string_is_refused():
    with pytest.raises(ValueError, match="non-empty"):
        Detokenizer(lambda ids, skip_special_tokens: "", ["a", ""])
