"""Sampling parameters of a batch as arrays: a row a request, the same shapes whatever is asked for.

`pack` runs on the host and touches no device; its result is an ordinary argument of a jitted step.
The widths come from the bounds in `jaxinfer.request`.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxinfer.request import (
    MAX_BAD_WORD_TOKENS,
    MAX_BAD_WORDS,
    MAX_BIAS,
    MAX_STOP_IDS,
    SamplingParams,
)

MAX_EOS_IDS = 16  # of a model: generation_config.json may list several

_REALS = (
    "temperature",
    "top_p",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)

Rows = TypeVar("Rows")


@struct.dataclass
class Sampling:
    """How each row samples; every leaf starts with the axis B. Unused ids are -1.

    temperature (0 is greedy), top_p, min_p, typical_p, repetition_penalty, presence_penalty,
      frequency_penalty: [B] float32.
    top_k, min_tokens: [B] int32.
    bias_ids, bias_values: [B, MAX_BIAS] int32, float32.
    stop_ids: [B, MAX_EOS_IDS + MAX_STOP_IDS] int32, what ends the row: EOS (unless ignored) and
      stop tokens.
    held_ids: the same and EOS even where it is ignored: what `min_tokens` holds back.
    bad_words: [B, MAX_BAD_WORDS, MAX_BAD_WORD_TOKENS] int32, each aligned to the right.
    key: [B, 2] uint32, data of a threefry key.
    raw_logprobs: [B] bool, report log-probabilities of the model's logits rather than of the
      processed ones.
    """

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    typical_p: jax.Array
    repetition_penalty: jax.Array
    presence_penalty: jax.Array
    frequency_penalty: jax.Array
    bias_ids: jax.Array
    bias_values: jax.Array
    min_tokens: jax.Array
    stop_ids: jax.Array
    held_ids: jax.Array
    bad_words: jax.Array
    key: jax.Array
    raw_logprobs: jax.Array


def pack(
    params: Sequence[SamplingParams],
    vocab_size: int,
    eos_ids: Sequence[int] = (),
    *,
    indices: Sequence[int] | None = None,
    rng: np.random.Generator | None = None,
) -> Sampling:
    """The rows `params` as NumPy arrays.

    Args:
      params: one per row; a request with n completions is n rows.
      vocab_size: V of the logits; params that name ids beyond it are refused.
      eos_ids: the model's end-of-sequence ids, at most MAX_EOS_IDS.
      indices: per row, which of its request's n completions it is; None is 0 everywhere.
      rng: draws the seed of rows without one; None takes the host's entropy. A row that may be
        packed again (after a preemption) needs a seed in `params`, or it would draw a new one.

    Raises:
      ValueError: an id outside the vocabulary, too many EOS ids, bad words that are still text, or
        a length mismatch.
    """
    indices = [0] * len(params) if indices is None else indices
    _check(params, vocab_size, eos_ids, indices)
    stop_width = MAX_EOS_IDS + MAX_STOP_IDS
    leaves: dict[str, Any] = {name: _column(params, name, np.float32) for name in _REALS}
    leaves |= {name: _column(params, name, np.int32) for name in ("top_k", "min_tokens")}
    biases = [dict(row.logit_bias) for row in params]
    leaves["bias_ids"] = _padded([list(bias) for bias in biases], MAX_BIAS)
    leaves["bias_values"] = _padded(
        [list(bias.values()) for bias in biases], MAX_BIAS, 0.0, np.float32
    )
    leaves["stop_ids"] = _padded(
        [(*(() if row.ignore_eos else eos_ids), *row.stop_token_ids) for row in params], stop_width
    )
    leaves["held_ids"] = _padded([(*eos_ids, *row.stop_token_ids) for row in params], stop_width)
    leaves["bad_words"] = np.full((len(params), MAX_BAD_WORDS, MAX_BAD_WORD_TOKENS), -1, np.int32)
    leaves["key"] = np.zeros((len(params), 2), np.uint32)
    for i, (row, index) in enumerate(zip(params, indices, strict=True)):
        leaves["key"][i] = request_key(_seed(row, rng), index)
        for j, word in enumerate(row.bad_word_ids):
            leaves["bad_words"][i, j, -len(word) :] = word
    leaves["raw_logprobs"] = np.array([row.logprobs_mode == "raw" for row in params], np.bool_)
    return Sampling(**leaves)


def greedy(batch: int) -> Sampling:
    """Rows that take the likeliest token and never stop by themselves."""
    return pack([SamplingParams(temperature=0.0, seed=0)] * batch, vocab_size=1)


def request_key(seed: int, index: int = 0) -> np.ndarray:
    """[2] uint32 threefry key data of completion `index` of a request with `seed` (0 .. 2**64 - 1).

    NumPy's SeedSequence makes it, on the host and the same in every version; completions get
    unrelated keys.
    """
    return np.random.SeedSequence(seed, spawn_key=(index,)).generate_state(2, np.uint32)


def needs_history(params: SamplingParams) -> bool:
    """Whether the draw depends on earlier tokens: if in no row, `sample` may get history=None."""
    return bool(
        params.bad_word_ids
        or params.min_tokens
        or params.repetition_penalty != 1.0
        or params.presence_penalty
        or params.frequency_penalty
    )


def stops(sampling: Sampling, tokens: jax.Array) -> jax.Array:
    """[B] bool: whether `tokens` [B] int32 end their rows: an EOS not ignored, or a stop token."""
    return jnp.any(sampling.stop_ids == tokens[:, None], axis=1)


def set_rows(whole: Rows, slots: jax.Array, rows: Rows) -> Rows:
    """`whole` (a Sampling or History of B rows) with rows `slots` [R] int32 replaced by `rows` (R).

    Slots of B or more are dropped, so that a fixed R serves any number of new rows; the slots must
    differ from one another. Donate `whole` to have it written in place.
    """
    return jax.tree.map(
        lambda old, new: jnp.asarray(old).at[slots].set(new, mode="drop"), whole, rows
    )


def _check(
    params: Sequence[SamplingParams],
    vocab_size: int,
    eos_ids: Sequence[int],
    indices: Sequence[int],
) -> None:
    if len(indices) != len(params):
        raise ValueError(
            f"indices: required one per row, {len(params)}; received {len(indices)}; "
            "pass None for all zeros"
        )
    if len(eos_ids) > MAX_EOS_IDS or any(not 0 <= token < vocab_size for token in eos_ids):
        raise ValueError(
            f"eos_ids: required at most {MAX_EOS_IDS} ids in [0, {vocab_size}); received "
            f"{tuple(eos_ids)}; pass the ids of the model's generation_config.json"
        )
    for row in params:
        row.validate(vocab_size)
        if row.bad_words:
            raise ValueError(
                f"bad_words: required token ids; received the texts {row.bad_words}; encode them "
                "with the tokenizer into bad_word_ids and clear bad_words"
            )


def _column(params: Sequence[SamplingParams], name: str, dtype: type) -> np.ndarray:
    return np.array([getattr(row, name) for row in params], dtype)


def _seed(params: SamplingParams, rng: np.random.Generator | None) -> int:
    if params.seed is not None:
        return params.seed
    if rng is None:
        return int(np.random.SeedSequence().generate_state(1, np.uint64)[0])
    return int(rng.integers(2**64, dtype=np.uint64))


def _padded(
    rows: Sequence[Sequence], width: int, fill: float = -1, dtype: type = np.int32
) -> np.ndarray:
    """[len(rows), width], each row from the left, the rest `fill`."""
    table = np.full((len(rows), width), fill, dtype)
    for line, row in zip(table, rows, strict=True):
        line[: len(row)] = row
    return table
