"""What a caller asks for and what comes back: sampling parameters, requests, tokens, completions.

Everything here is plain, frozen and validated once, when it is made; later stages trust it. The
bounds are the public constants below: they also fix the widths of the per-row arrays that the
sampler holds. What depends on a model (its vocabulary, its context) is checked by the `validate`
methods. This module knows nothing of JAX, tokenizers or text.
"""

import enum
import numbers
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

MAX_NEW_TOKENS = (
    2**30
)  # positions are int32: a prompt and its continuation together stay below 2**31
MAX_PROMPT_TOKENS = 2**30
MAX_TOKEN_ID = 2**31 - 1
MAX_SEED = 2**64 - 1  # two uint32 words of PRNG key data
MAX_N = 128
MAX_LOGPROBS = 32
MAX_BIAS = 256
MAX_STOP_IDS = 16
MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 256
MAX_BAD_WORDS = (
    32  # token sequences; a word given as text counts twice: with and without a space before it
)
MAX_BAD_WORD_TOKENS = 8
MAX_BAD_WORD_CHARS = 256
MAX_ID_CHARS = 256
MIN_TEMPERATURE = 1e-5  # below it, logits / temperature overflows float32; 0 is greedy
MAX_TEMPERATURE = 100.0
MAX_ABS_BIAS = 100.0
MAX_ABS_PENALTY = 2.0
MIN_REPETITION_PENALTY = 0.01
MAX_REPETITION_PENALTY = 100.0
LOGPROBS_MODES = ("raw", "processed")


class FinishReason(enum.StrEnum):
    """Why a sequence ended: an EOS or a stop, the limit on its length, a cancelled request, or a
    grammar that could not be followed any further.
    """

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


class Matcher(Protocol):
    """Where one sequence stands in its grammar; what it raises ends that sequence alone.

    mask(): the tokens that may come next, [ceil(V / 32)] uint32 with a bit each. finished: the
    grammar is at its end and its EOS has come.
    """

    finished: bool

    def mask(self) -> Any: ...
    def advance(self, token: int, /) -> None: ...


class Followed(Protocol):
    """A compiled grammar over `vocab_size` tokens; see `jaxinfer.grammar`."""

    vocab_size: int

    def matcher(self) -> Matcher: ...


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How to continue a prompt. Every field is checked here; a wrong one is a ValueError.

    Fields:
      max_new_tokens: tokens to generate at most, 1 .. MAX_NEW_TOKENS.
      temperature: 0 is greedy; else MIN_TEMPERATURE .. MAX_TEMPERATURE.
      top_k: keep the k likeliest tokens; 0 or less is off (stored as 0).
      top_p: keep the smallest set of likeliest tokens that has this probability, in (0, 1];
        1 is off.
      min_p: drop tokens below this fraction of the likeliest one's probability, in [0, 1];
        0 is off.
      typical_p: locally typical sampling (Meister et al., 2022), in (0, 1]; 1 is off.
      repetition_penalty: divides positive and multiplies negative logits of seen tokens
        (Keskar et al., 2019); 1 is off.
      presence_penalty, frequency_penalty: subtracted once / per occurrence in the generated
        tokens, in [-2, 2].
      logit_bias: {token id: added to its logit, in [-100, 100]}, at most MAX_BIAS; stored as
        sorted pairs.
      min_tokens: no EOS and no stop token before this many tokens, 0 .. max_new_tokens.
      bad_words: texts never to generate; a tokenizer turns them into `bad_word_ids` before a
        request runs.
      bad_word_ids: token sequences never to complete, each of 1 .. MAX_BAD_WORD_TOKENS ids.
      seed: 0 .. MAX_SEED, or None to be given one.
      n: independent continuations of the prompt, 1 .. MAX_N.
      stop: texts that end the sequence and are not part of it; a string is a tuple of one.
      stop_token_ids: token ids that end it besides EOS, at most MAX_STOP_IDS.
      ignore_eos: go on after EOS.
      logprobs: None, or how many of the likeliest tokens to report beside the chosen one,
        0 .. MAX_LOGPROBS.
      logprobs_mode: "raw" (of the model's logits) or "processed" (after penalties,
        temperature and masks).
    """

    max_new_tokens: int = 128
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...] = ()
    min_tokens: int = 0
    bad_words: tuple[str, ...] = ()
    bad_word_ids: tuple[tuple[int, ...], ...] = ()
    seed: int | None = None
    n: int = 1
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    logprobs_mode: str = "raw"

    def __post_init__(self):
        self._store("max_new_tokens", _integer, 1, MAX_NEW_TOKENS)
        self._store("temperature", _temperature)
        self._store("top_k", _integer, -MAX_TOKEN_ID, MAX_TOKEN_ID)
        object.__setattr__(self, "top_k", max(self.top_k, 0))
        self._store("top_p", _fraction_above_zero)
        self._store("min_p", _real, 0.0, 1.0)
        self._store("typical_p", _fraction_above_zero)
        self._store("repetition_penalty", _real, MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY)
        self._store("presence_penalty", _real, -MAX_ABS_PENALTY, MAX_ABS_PENALTY)
        self._store("frequency_penalty", _real, -MAX_ABS_PENALTY, MAX_ABS_PENALTY)
        self._store("logit_bias", _bias_pairs)
        self._store("min_tokens", _integer, 0, self.max_new_tokens)
        self._store("bad_words", _texts, MAX_BAD_WORDS // 2, MAX_BAD_WORD_CHARS)
        self._store("bad_word_ids", _id_sequences)
        bad = 2 * len(self.bad_words) + len(self.bad_word_ids)
        if bad > MAX_BAD_WORDS:
            raise _error(
                "bad_words and bad_word_ids",
                f"2 * len(bad_words) + len(bad_word_ids) at most {MAX_BAD_WORDS}",
                bad,
                "give fewer",
            )
        if self.seed is not None:
            self._store("seed", _integer, 0, MAX_SEED)
        self._store("n", _integer, 1, MAX_N)
        self._store("stop", _texts, MAX_STOP_STRINGS, MAX_STOP_CHARS)
        self._store("stop_token_ids", _ids, MAX_STOP_IDS)
        if not isinstance(self.ignore_eos, bool):
            raise _error("ignore_eos", "True or False", self.ignore_eos, "pass a bool")
        if self.logprobs is not None:
            self._store("logprobs", _integer, 0, MAX_LOGPROBS)
        if self.logprobs_mode not in LOGPROBS_MODES:
            raise _error(
                "logprobs_mode", f"one of {LOGPROBS_MODES}", self.logprobs_mode, "pick one"
            )

    def _store(self, name: str, check: Callable[..., Any], *bounds) -> None:
        object.__setattr__(self, name, check(name, getattr(self, name), *bounds))

    @property
    def greedy(self) -> bool:
        """True where the likeliest token is always taken."""
        return self.temperature == 0.0

    def validate(self, vocab_size: int) -> None:
        """Refuses (ValueError) what a model with `vocab_size` logits cannot honour."""
        _below_vocabulary("stop_token_ids", self.stop_token_ids, vocab_size)
        _below_vocabulary("logit_bias", dict(self.logit_bias), vocab_size)
        for sequence in self.bad_word_ids:
            _below_vocabulary("bad_word_ids", sequence, vocab_size)
        if self.logprobs is not None and self.logprobs > vocab_size:
            raise _error(
                "logprobs",
                f"at most the vocabulary size, {vocab_size}",
                self.logprobs,
                "ask for fewer",
            )


@dataclass(frozen=True)
class Request:
    """A prompt of 1 .. MAX_PROMPT_TOKENS ids to continue; `id` is the caller's name for it.

    grammar: what the continuation must follow, compiled for this model's tokens. Its end ends the
    sequence, `ignore_eos` or not.
    """

    id: str
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams = field(default_factory=SamplingParams)
    grammar: Followed | None = None

    def __post_init__(self):
        if not isinstance(self.id, str) or not 1 <= len(self.id) <= MAX_ID_CHARS:
            raise _error(
                "id", f"a string of 1 to {MAX_ID_CHARS} characters", self.id, "name the request"
            )
        prompt = _ids("prompt_token_ids", self.prompt_token_ids, MAX_PROMPT_TOKENS)
        if not prompt:
            raise _error(
                "prompt_token_ids",
                "at least one token",
                prompt,
                "begin with a BOS token or any text",
            )
        object.__setattr__(self, "prompt_token_ids", prompt)
        if not isinstance(self.params, SamplingParams):
            raise _error(
                "params",
                "a SamplingParams",
                self.params,
                "wrap the settings in SamplingParams(...)",
            )

    def validate(self, vocab_size: int, context_limit: int | None = None) -> None:
        """Refuses (ValueError) what a model with `vocab_size` logits cannot serve.

        The prompt and `max_new_tokens` must fit into `context_limit` positions together; None is
        a model (or a ring with attention sinks) without a limit.
        """
        _below_vocabulary("prompt_token_ids", self.prompt_token_ids, vocab_size)
        if self.grammar is not None and self.grammar.vocab_size != vocab_size:
            raise _error(
                "grammar",
                f"one compiled for {vocab_size} tokens, as the model has",
                self.grammar.vocab_size,
                "make its Compiler with the model's vocab_size",
            )
        self.params.validate(vocab_size)
        prompt, new = len(self.prompt_token_ids), self.params.max_new_tokens
        if context_limit is not None and prompt + new > context_limit:
            raise _error(
                "prompt and max_new_tokens",
                f"at most {context_limit} positions together, the context limit",
                f"{prompt} + {new}",
                "shorten the prompt or lower max_new_tokens",
            )


@dataclass(frozen=True)
class Token:
    """One generated token. `logprob` is None unless asked for; the last has a `finish_reason`, and
    an `error` where that is FinishReason.ERROR.

    `top_logprobs` holds (token id, log-probability) pairs, likeliest first; `index` tells the n
    continuations apart.
    """

    request_id: str
    token_id: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] | None = None
    finish_reason: FinishReason | None = None
    index: int = 0
    error: str | None = None


@dataclass(frozen=True)
class Completion:
    """A finished continuation: `text` ends before its stop string; one of `logprobs` a token."""

    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    logprobs: tuple[float, ...] | None = None
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...] | None = None
    index: int = 0
    ttft_s: float | None = None
    decode_tokens_per_s: float | None = None


def _error(name: str, required: str, received: Any, remedy: str) -> ValueError:
    shown = repr(received)
    shown = shown if len(shown) <= 120 else shown[:117] + "..."
    return ValueError(f"{name}: required {required}; received {shown}; {remedy}")


def _integer(name: str, value: Any, low: int, high: int) -> int:
    required = f"an integer from {low} to {high}"
    if type(value) is not int:
        if isinstance(value, bool):
            raise _error(name, required, value, "a bool is not a number here")
        try:
            value = operator.index(value)
        except TypeError as cause:
            raise _error(name, required, value, "pass an int") from cause
    if not low <= value <= high:
        raise _error(name, required, value, "choose a value in that range")
    return value


def _real(name: str, value: Any, low: float, high: float) -> float:
    required = f"a finite number from {low:g} to {high:g}"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise _error(name, required, value, "pass a float")
    # NaN is in no range. Compared before float(), which huge integers overflow.
    if not (operator.le(low, value) and operator.le(value, high)):
        raise _error(name, required, value, "choose a value in that range")
    return float(value)


def _temperature(name: str, value: Any) -> float:
    temperature = _real(name, value, 0.0, MAX_TEMPERATURE)
    if 0.0 < temperature < MIN_TEMPERATURE:
        required = f"0 or a number from {MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}"
        raise _error(name, required, value, "use 0 for greedy decoding")
    return temperature


def _fraction_above_zero(name: str, value: Any) -> float:
    fraction = _real(name, value, 0.0, 1.0)
    if fraction == 0.0:
        raise _error(
            name,
            "a number in (0, 1]",
            value,
            "use 1 for off, or temperature=0 for the likeliest token only",
        )
    return fraction


def _sequence(name: str, value: Any, most: int, of: str) -> tuple:
    required = f"at most {most} {of}"
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise _error(name, required, value, "pass a tuple or a list")
    items = tuple(islice(value, most + 1))
    if len(items) > most:
        raise _error(name, required, f"more than {most}", "give fewer")
    return items


def _ids(name: str, value: Any, most: int) -> tuple[int, ...]:
    return tuple(
        _integer(name, item, 0, MAX_TOKEN_ID) for item in _sequence(name, value, most, "token ids")
    )


def _id_sequences(name: str, value: Any) -> tuple[tuple[int, ...], ...]:
    sequences = _sequence(name, value, MAX_BAD_WORDS, "sequences of token ids")
    sequences = tuple(_ids(name, sequence, MAX_BAD_WORD_TOKENS) for sequence in sequences)
    if () in sequences:
        raise _error(
            name, "at least one token id in each sequence", sequences, "drop the empty one"
        )
    return sequences


def _texts(name: str, value: Any, most: int, chars: int) -> tuple[str, ...]:
    texts = _sequence(name, (value,) if isinstance(value, str) else value, most, "strings")
    for text in texts:
        if not isinstance(text, str) or not 1 <= len(text) <= chars:
            raise _error(name, f"strings of 1 to {chars} characters", text, "drop or shorten it")
    return texts


def _bias_pairs(name: str, value: Any) -> tuple[tuple[int, float], ...]:
    pairs = _sequence(
        name,
        value.items() if isinstance(value, Mapping) else value,
        MAX_BIAS,
        "token ids with a bias",
    )
    checked: dict[int, float] = {}
    for pair in pairs:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise _error(name, "a mapping from token id to bias", pair, "pass {token_id: bias}")
        token = _integer(f"{name} token id", pair[0], 0, MAX_TOKEN_ID)
        if token in checked:
            raise _error(name, "each token id once", token, "drop the repetition")
        checked[token] = _real(f"{name} of token {token}", pair[1], -MAX_ABS_BIAS, MAX_ABS_BIAS)
    return tuple(sorted(checked.items()))


def _below_vocabulary(name: str, ids: Iterable[int], vocab_size: int) -> None:
    largest = max(ids, default=-1)
    if largest >= vocab_size:
        raise _error(
            name,
            f"token ids below the vocabulary size, {vocab_size}",
            largest,
            "use this model's own ids",
        )
