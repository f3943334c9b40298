"""How the tokens of an answer are drawn, and when it ends."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxinfer.request.bounds import (
    LOGPROBS_MODES,
    MAX_ABS_PENALTY,
    MAX_BAD_WORD_CHARS,
    MAX_BAD_WORDS,
    MAX_LOGPROBS,
    MAX_N,
    MAX_NEW_TOKENS,
    MAX_REPETITION_PENALTY,
    MAX_SEED,
    MAX_STOP_CHARS,
    MAX_STOP_IDS,
    MAX_STOP_STRINGS,
    MAX_TOKEN_ID,
    MIN_REPETITION_PENALTY,
    below_vocabulary,
    bias_pairs,
    error,
    fraction_above_zero,
    id_sequences,
    ids,
    integer,
    real,
    temperature,
    texts,
)


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
        self._store("max_new_tokens", integer, 1, MAX_NEW_TOKENS)
        self._store("temperature", temperature)
        self._store("top_k", integer, -MAX_TOKEN_ID, MAX_TOKEN_ID)
        object.__setattr__(self, "top_k", max(self.top_k, 0))
        self._store("top_p", fraction_above_zero)
        self._store("min_p", real, 0.0, 1.0)
        self._store("typical_p", fraction_above_zero)
        self._store("repetition_penalty", real, MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY)
        self._store("presence_penalty", real, -MAX_ABS_PENALTY, MAX_ABS_PENALTY)
        self._store("frequency_penalty", real, -MAX_ABS_PENALTY, MAX_ABS_PENALTY)
        self._store("logit_bias", bias_pairs)
        self._store("min_tokens", integer, 0, self.max_new_tokens)
        self._store("bad_words", texts, MAX_BAD_WORDS // 2, MAX_BAD_WORD_CHARS)
        self._store("bad_word_ids", id_sequences)
        bad = 2 * len(self.bad_words) + len(self.bad_word_ids)
        if bad > MAX_BAD_WORDS:
            raise error(
                "bad_words and bad_word_ids",
                f"2 * len(bad_words) + len(bad_word_ids) at most {MAX_BAD_WORDS}",
                bad,
                "give fewer",
            )
        if self.seed is not None:
            self._store("seed", integer, 0, MAX_SEED)
        self._store("n", integer, 1, MAX_N)
        self._store("stop", texts, MAX_STOP_STRINGS, MAX_STOP_CHARS)
        self._store("stop_token_ids", ids, MAX_STOP_IDS)
        if not isinstance(self.ignore_eos, bool):
            raise error("ignore_eos", "True or False", self.ignore_eos, "pass a bool")
        if self.logprobs is not None:
            self._store("logprobs", integer, 0, MAX_LOGPROBS)
        if self.logprobs_mode not in LOGPROBS_MODES:
            raise error("logprobs_mode", f"one of {LOGPROBS_MODES}", self.logprobs_mode, "pick one")

    def _store(self, name: str, check: Callable[..., Any], *bounds) -> None:
        object.__setattr__(self, name, check(name, getattr(self, name), *bounds))

    @property
    def greedy(self) -> bool:
        """True where the likeliest token is always taken."""
        return self.temperature == 0.0

    def validate(self, vocab_size: int) -> None:
        """Refuses (ValueError) what a model with `vocab_size` logits cannot honour."""
        below_vocabulary("stop_token_ids", self.stop_token_ids, vocab_size)
        below_vocabulary("logit_bias", dict(self.logit_bias), vocab_size)
        for sequence in self.bad_word_ids:
            below_vocabulary("bad_word_ids", sequence, vocab_size)
        if self.logprobs is not None and self.logprobs > vocab_size:
            raise error(
                "logprobs",
                f"at most the vocabulary size, {vocab_size}",
                self.logprobs,
                "ask for fewer",
            )
