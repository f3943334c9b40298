"""Sampling parameters of a batch as arrays: a row a request, the same shapes whatever is asked for.

`pack` runs on the host and touches no device; its result is an ordinary argument of a jitted step.
The widths come from the bounds in `jaxinfer.request`.
"""

from collections.abc import Sequence
from typing import TypeVar

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

Array = jax.Array | np.ndarray
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

    temperature: Array
    top_k: Array
    top_p: Array
    min_p: Array
    typical_p: Array
    repetition_penalty: Array
    presence_penalty: Array
    frequency_penalty: Array
    bias_ids: Array
    bias_values: Array
    min_tokens: Array
    stop_ids: Array
    held_ids: Array
    bad_words: Array
    key: Array
    raw_logprobs: Array


def pack(
    params: Sequence[SamplingParams],
    vocab_size: int,
    eos_ids: Sequence[int] = (),
    *,
    indices: Sequence[int] | None = None,
    rng: np.random.Generator | None = None,
) -> Sampling:
    """Host arrays for the rows `params`.

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

    def reals(name: str) -> np.ndarray:
        return np.array([getattr(row, name) for row in params], np.float32)

    def integers(name: str) -> np.ndarray:
        return np.array([getattr(row, name) for row in params], np.int32)

    stop_width = MAX_EOS_IDS + MAX_STOP_IDS
    return Sampling(
        temperature=reals("temperature"),
        top_k=integers("top_k"),
        top_p=reals("top_p"),
        min_p=reals("min_p"),
        typical_p=reals("typical_p"),
        repetition_penalty=reals("repetition_penalty"),
        presence_penalty=reals("presence_penalty"),
        frequency_penalty=reals("frequency_penalty"),
        bias_ids=_padded([[token for token, _ in row.logit_bias] for row in params], MAX_BIAS),
        bias_values=_padded(
            [[bias for _, bias in row.logit_bias] for row in params], MAX_BIAS, 0.0, np.float32
        ),
        min_tokens=integers("min_tokens"),
        stop_ids=_padded(
            [(() if row.ignore_eos else tuple(eos_ids)) + row.stop_token_ids for row in params],
            stop_width,
        ),
        held_ids=_padded([tuple(eos_ids) + row.stop_token_ids for row in params], stop_width),
        bad_words=np.stack([_right_aligned(row.bad_word_ids) for row in params])
        if params
        else np.zeros((0, MAX_BAD_WORDS, MAX_BAD_WORD_TOKENS), np.int32),
        key=np.array(
            [
                request_key(_seed(row, rng), index)
                for row, index in zip(params, indices, strict=True)
            ],
            np.uint32,
        ).reshape(len(params), 2),
        raw_logprobs=np.array([row.logprobs_mode == "raw" for row in params], np.bool_),
    )


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


def _right_aligned(words: Sequence[Sequence[int]]) -> np.ndarray:
    """[MAX_BAD_WORDS, MAX_BAD_WORD_TOKENS]: the last token of each word in the last column."""
    table = np.full((MAX_BAD_WORDS, MAX_BAD_WORD_TOKENS), -1, np.int32)
    for line, word in zip(table, words, strict=False):
        line[-len(word) :] = word
    return table
