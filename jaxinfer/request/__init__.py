"""What a caller asks for and what comes back: sampling parameters, requests, tokens, completions.

Everything here is plain, frozen and validated once, when it is made; later stages trust it. The
bounds are the public constants below: they also fix the widths of the per-row arrays that the
sampler holds. What depends on a model (its vocabulary, its context) is checked by the `validate`
methods. This module knows nothing of JAX, tokenizers or text.
"""

import enum
from dataclasses import dataclass, field
from typing import Any, Protocol

from jaxinfer.request.bounds import LOGPROBS_MODES as LOGPROBS_MODES
from jaxinfer.request.bounds import MAX_ABS_BIAS as MAX_ABS_BIAS
from jaxinfer.request.bounds import MAX_ABS_PENALTY as MAX_ABS_PENALTY
from jaxinfer.request.bounds import MAX_BAD_WORD_CHARS as MAX_BAD_WORD_CHARS
from jaxinfer.request.bounds import MAX_BAD_WORD_TOKENS as MAX_BAD_WORD_TOKENS
from jaxinfer.request.bounds import MAX_BAD_WORDS as MAX_BAD_WORDS
from jaxinfer.request.bounds import MAX_BIAS as MAX_BIAS
from jaxinfer.request.bounds import MAX_ID_CHARS as MAX_ID_CHARS
from jaxinfer.request.bounds import MAX_LOGPROBS as MAX_LOGPROBS
from jaxinfer.request.bounds import MAX_N as MAX_N
from jaxinfer.request.bounds import MAX_NEW_TOKENS as MAX_NEW_TOKENS
from jaxinfer.request.bounds import MAX_PROMPT_TOKENS as MAX_PROMPT_TOKENS
from jaxinfer.request.bounds import MAX_REPETITION_PENALTY as MAX_REPETITION_PENALTY
from jaxinfer.request.bounds import MAX_SEED as MAX_SEED
from jaxinfer.request.bounds import MAX_STOP_CHARS as MAX_STOP_CHARS
from jaxinfer.request.bounds import MAX_STOP_IDS as MAX_STOP_IDS
from jaxinfer.request.bounds import MAX_STOP_STRINGS as MAX_STOP_STRINGS
from jaxinfer.request.bounds import MAX_TEMPERATURE as MAX_TEMPERATURE
from jaxinfer.request.bounds import MAX_TOKEN_ID as MAX_TOKEN_ID
from jaxinfer.request.bounds import MIN_REPETITION_PENALTY as MIN_REPETITION_PENALTY
from jaxinfer.request.bounds import MIN_TEMPERATURE as MIN_TEMPERATURE
from jaxinfer.request.bounds import below_vocabulary, error, ids
from jaxinfer.request.sampling import SamplingParams as SamplingParams


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
            raise error(
                "id", f"a string of 1 to {MAX_ID_CHARS} characters", self.id, "name the request"
            )
        prompt = ids("prompt_token_ids", self.prompt_token_ids, MAX_PROMPT_TOKENS)
        if not prompt:
            raise error(
                "prompt_token_ids",
                "at least one token",
                prompt,
                "begin with a BOS token or any text",
            )
        object.__setattr__(self, "prompt_token_ids", prompt)
        if not isinstance(self.params, SamplingParams):
            raise error(
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
        below_vocabulary("prompt_token_ids", self.prompt_token_ids, vocab_size)
        if self.grammar is not None and self.grammar.vocab_size != vocab_size:
            raise error(
                "grammar",
                f"one compiled for {vocab_size} tokens, as the model has",
                self.grammar.vocab_size,
                "make its Compiler with the model's vocab_size",
            )
        self.params.validate(vocab_size)
        prompt, new = len(self.prompt_token_ids), self.params.max_new_tokens
        if context_limit is not None and prompt + new > context_limit:
            raise error(
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
