"""Requests: every bound holds, every error says what was required, what came and what to do."""

import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest

from jaxinfer import request
from jaxinfer.request import Completion, FinishReason, Request, SamplingParams, Token

BOUNDS = {
    "max_new_tokens": (1, request.MAX_NEW_TOKENS),
    "temperature": (0.0, request.MAX_TEMPERATURE),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (request.MIN_REPETITION_PENALTY, request.MAX_REPETITION_PENALTY),
    "presence_penalty": (-request.MAX_ABS_PENALTY, request.MAX_ABS_PENALTY),
    "frequency_penalty": (-request.MAX_ABS_PENALTY, request.MAX_ABS_PENALTY),
    "min_tokens": (0, 128),
    "seed": (0, request.MAX_SEED),
    "n": (1, request.MAX_N),
    "logprobs": (0, request.MAX_LOGPROBS),
}
NUMBERS = (*BOUNDS, "top_k", "top_p", "typical_p")


def refused(**fields) -> str:
    """The error for these fields, which must have all three parts."""
    with pytest.raises(ValueError, match=r"(?s).+: required .+; received .+; .+") as caught:
        SamplingParams(**fields)
    return str(caught.value)


@pytest.mark.parametrize("name", BOUNDS)
def test_bounds(name):
    for bound, outside in zip(BOUNDS[name], (-1, 1), strict=True):
        assert getattr(SamplingParams(**{name: bound}), name) == bound
        beyond = bound + outside if isinstance(bound, int) else math.nextafter(bound, outside * 1e9)
        assert name in refused(**{name: beyond})


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_numbers(name):
    for wrong in (True, False, "1", [1], object(), math.nan, math.inf, -math.inf, 10**400, 1j):
        assert name in refused(**{name: wrong})
    if name not in ("seed", "logprobs"):
        assert name in refused(**{name: None})


@pytest.mark.parametrize("name", ["max_new_tokens", "top_k", "min_tokens", "seed", "n", "logprobs"])
def test_integers_are_integers(name):
    assert name in refused(**{name: 1.0})
    stored = getattr(SamplingParams(**{name: np.int64(1)}), name)
    assert stored == 1
    assert type(stored) is int


@pytest.mark.parametrize("name", ["top_p", "typical_p"])
def test_fractions_above_zero(name):
    assert "(0, 1]" in refused(**{name: 0.0})
    refused(**{name: math.nextafter(1.0, 2.0)})
    for value in (1, np.float32(0.5), Fraction(1, 4), 5e-324):
        stored = getattr(SamplingParams(**{name: value}), name)
        assert stored == float(value)
        assert type(stored) is float


def test_temperature_zero_is_greedy_and_tiny_ones_are_refused():
    assert SamplingParams(temperature=0).greedy
    assert not SamplingParams(temperature=request.MIN_TEMPERATURE).greedy
    assert "use 0 for greedy" in refused(temperature=request.MIN_TEMPERATURE / 2)


def test_top_k_at_most_zero_is_off():
    for top_k in (0, -1, -50):
        assert SamplingParams(top_k=top_k).top_k == 0
    assert SamplingParams(top_k=50).top_k == 50
    refused(top_k=2**31)


def test_logit_bias_is_sorted_pairs():
    params = SamplingParams(logit_bias={7: 1, np.int32(3): np.float32(-2)})
    assert params.logit_bias == ((3, -2.0), (7, 1.0))
    assert dataclasses.replace(params, n=2).logit_bias == params.logit_bias
    full = {token: 0.0 for token in range(request.MAX_BIAS)}
    assert len(SamplingParams(logit_bias=full).logit_bias) == request.MAX_BIAS
    refused(logit_bias=full | {request.MAX_BIAS: 0.0})
    wrong: list = [{1: 101}, {1: -101}, {1: math.nan}, {-1: 1}, {"1": 1}, {True: 1}, {1: True}]
    wrong += [{2**31: 1}, 5, "ab", [1, 2], ((1, 1.0), (1, 2.0)), None]
    for value in wrong:
        assert "logit_bias" in refused(logit_bias=value)


def test_stop_strings_and_ids():
    assert SamplingParams(stop="end").stop == ("end",)
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")
    SamplingParams(stop=["x" * request.MAX_STOP_CHARS] * request.MAX_STOP_STRINGS)
    for stop in ("", ["a", ""], [b"a"], [1], 5, None, {"a": 1}, ["a"] * 17, "x" * 257):
        assert "stop" in refused(stop=stop)
    ids = np.arange(request.MAX_STOP_IDS)
    assert SamplingParams(stop_token_ids=ids).stop_token_ids == tuple(range(16))
    for ids in ([-1], [True], [1.0], "12", 3, range(10**12), [2**31]):
        assert "stop_token_ids" in refused(stop_token_ids=ids)


def test_bad_words_count_twice():
    most = request.MAX_BAD_WORDS
    SamplingParams(bad_words=["w"] * (most // 2 - 1), bad_word_ids=[[1], [2]])
    refused(bad_words=["w"] * (most // 2), bad_word_ids=[[1]])
    refused(bad_words=["w"] * (most // 2 + 1))
    refused(bad_words=[""])
    assert SamplingParams(bad_word_ids=[[1, 2], (3,)]).bad_word_ids == ((1, 2), (3,))
    longest = list(range(request.MAX_BAD_WORD_TOKENS))
    SamplingParams(bad_word_ids=[longest])
    for wrong in ([[]], [[*longest, 1]], [[-1]], [3], [["a"]], [[1]] * (most + 1)):
        assert "bad_word_ids" in refused(bad_word_ids=wrong)


def test_other_fields():
    for wrong in (1, None, "yes"):
        assert "ignore_eos" in refused(ignore_eos=wrong)
    assert "raw" in refused(logprobs_mode="both")
    refused(max_new_tokens=4, min_tokens=5)
    with pytest.raises(TypeError, match="temprature"):
        SamplingParams(temprature=1.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        SamplingParams().n = 2


def test_equal_parameters_are_equal_and_hash():
    first = SamplingParams(logit_bias={2: 1.0, 1: 1.0}, stop=["a"], temperature=1)
    second = SamplingParams(logit_bias={1: 1.0, 2: 1.0}, stop=("a",), temperature=1.0)
    assert first == second
    assert hash(first) == hash(second)


def test_request_checks_its_prompt():
    assert Request("a", np.array([1, 2, 3])).prompt_token_ids == (1, 2, 3)
    wrong: list = [(), "text", None, [1, -1], [1.5], [True], [2**31], 7]
    for prompt in wrong:
        with pytest.raises(ValueError, match=r"prompt_token_ids.*required.*received"):
            Request("a", prompt)
    for name in ("", "x" * 257, 5):
        with pytest.raises(ValueError, match="id: required"):
            Request(name, (1,))
    with pytest.raises(ValueError, match="params: required"):
        Request("a", (1,), {"n": 1})


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("stop_token_ids", {"stop_token_ids": [9, 10]}),
        ("logit_bias", {"logit_bias": {3: 1.0, 10: 1.0}}),
        ("bad_word_ids", {"bad_word_ids": [[1], [2, 10]]}),
        ("logprobs", {"logprobs": 11}),
    ],
)
def test_parameters_against_a_vocabulary(name, params):
    made = Request("a", (9, 0), SamplingParams(max_new_tokens=1, **params))
    made.validate(vocab_size=11)
    with pytest.raises(ValueError, match=f"{name}: required.*10"):
        made.validate(vocab_size=10)


def test_prompt_against_a_vocabulary_and_a_context():
    made = Request("a", (1, 10, 2), SamplingParams(max_new_tokens=5))
    made.validate(vocab_size=11)
    made.validate(vocab_size=11, context_limit=8)
    with pytest.raises(ValueError, match=r"prompt_token_ids: required.*received 10"):
        made.validate(vocab_size=10)
    with pytest.raises(ValueError, match=r"at most 7 positions.*3 \+ 5"):
        made.validate(vocab_size=11, context_limit=7)


def test_what_comes_back():
    token = Token("a", 5, -0.5, ((5, -0.5), (7, -1.0)), FinishReason.STOP)
    assert (token.index, f"{token.finish_reason}") == (0, "stop")
    done = Completion((1,), (2, 3), "text", FinishReason.LENGTH)
    assert done.logprobs is None
    assert {reason.value for reason in FinishReason} == {"stop", "length", "abort", "error"}


class Grammar:
    def __init__(self, vocab_size):
        self.vocab_size = vocab_size

    def matcher(self):
        raise AssertionError("nobody follows it here")


def test_a_grammar_is_for_the_models_vocabulary():
    request = Request("r", (1, 2), grammar=Grammar(10))
    request.validate(10)
    with pytest.raises(ValueError, match="grammar: required one compiled for 11 tokens"):
        request.validate(11)
