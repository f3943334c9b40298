"""What bounds a request, and the checks of single values against it.

A check returns the value in its plain form, or raises ValueError that says what was required, what
came and what to do.
"""

import numbers
import operator
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

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


def error(name: str, required: str, received: Any, remedy: str) -> ValueError:
    shown = repr(received)
    shown = shown if len(shown) <= 120 else shown[:117] + "..."
    return ValueError(f"{name}: required {required}; received {shown}; {remedy}")


def integer(name: str, value: Any, low: int, high: int) -> int:
    required = f"an integer from {low} to {high}"
    if type(value) is not int:
        if isinstance(value, bool):
            raise error(name, required, value, "a bool is not a number here")
        try:
            value = operator.index(value)
        except TypeError as cause:
            raise error(name, required, value, "pass an int") from cause
    if not low <= value <= high:
        raise error(name, required, value, "choose a value in that range")
    return value


def real(name: str, value: Any, low: float, high: float) -> float:
    required = f"a finite number from {low:g} to {high:g}"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise error(name, required, value, "pass a float")
    # NaN is in no range. Compared before float(), which huge integers overflow.
    if not (operator.le(low, value) and operator.le(value, high)):
        raise error(name, required, value, "choose a value in that range")
    return float(value)


def temperature(name: str, value: Any) -> float:
    temperature = real(name, value, 0.0, MAX_TEMPERATURE)
    if 0.0 < temperature < MIN_TEMPERATURE:
        required = f"0 or a number from {MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}"
        raise error(name, required, value, "use 0 for greedy decoding")
    return temperature


def fraction_above_zero(name: str, value: Any) -> float:
    fraction = real(name, value, 0.0, 1.0)
    if fraction == 0.0:
        raise error(
            name,
            "a number in (0, 1]",
            value,
            "use 1 for off, or temperature=0 for the likeliest token only",
        )
    return fraction


def sequence(name: str, value: Any, most: int, of: str) -> tuple:
    required = f"at most {most} {of}"
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise error(name, required, value, "pass a tuple or a list")
    items = tuple(islice(value, most + 1))
    if len(items) > most:
        raise error(name, required, f"more than {most}", "give fewer")
    return items


def ids(name: str, value: Any, most: int) -> tuple[int, ...]:
    return tuple(
        integer(name, item, 0, MAX_TOKEN_ID) for item in sequence(name, value, most, "token ids")
    )


def id_sequences(name: str, value: Any) -> tuple[tuple[int, ...], ...]:
    sequences = sequence(name, value, MAX_BAD_WORDS, "sequences of token ids")
    sequences = tuple(ids(name, sequence, MAX_BAD_WORD_TOKENS) for sequence in sequences)
    if () in sequences:
        raise error(name, "at least one token id in each sequence", sequences, "drop the empty one")
    return sequences


def texts(name: str, value: Any, most: int, chars: int) -> tuple[str, ...]:
    texts = sequence(name, (value,) if isinstance(value, str) else value, most, "strings")
    for text in texts:
        if not isinstance(text, str) or not 1 <= len(text) <= chars:
            raise error(name, f"strings of 1 to {chars} characters", text, "drop or shorten it")
    return texts


def bias_pairs(name: str, value: Any) -> tuple[tuple[int, float], ...]:
    pairs = sequence(
        name,
        value.items() if isinstance(value, Mapping) else value,
        MAX_BIAS,
        "token ids with a bias",
    )
    checked: dict[int, float] = {}
    for pair in pairs:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise error(name, "a mapping from token id to bias", pair, "pass {token_id: bias}")
        token = integer(f"{name} token id", pair[0], 0, MAX_TOKEN_ID)
        if token in checked:
            raise error(name, "each token id once", token, "drop the repetition")
        checked[token] = real(f"{name} of token {token}", pair[1], -MAX_ABS_BIAS, MAX_ABS_BIAS)
    return tuple(sorted(checked.items()))


def below_vocabulary(name: str, ids: Iterable[int], vocab_size: int) -> None:
    largest = max(ids, default=-1)
    if largest >= vocab_size:
        raise error(
            name,
            f"token ids below the vocabulary size, {vocab_size}",
            largest,
            "use this model's own ids",
        )
