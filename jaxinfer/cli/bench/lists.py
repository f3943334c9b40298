"""Flags that hold several values: sizes with an ellipsis, and methods of quantization."""

import itertools
import re

from jaxinfer.quantize import METHODS

PLAIN = "none"  # among the methods of --quantize: weights as they are


def sizes(name: str, text: str) -> list[int]:
    """Positive integers separated by commas; "1,2,4,...,64" goes on as it begins.

    ValueError says what the flag `name` needs.
    """
    parts = [part.strip() for part in text.split(",")]
    found: list[int] = []
    for i, part in enumerate(parts):
        if part == "...":
            found += _between(name, text, found, parts[i + 1 :])
        elif re.fullmatch(r"[1-9]\d*", part):
            found.append(int(part))
        else:
            raise ValueError(
                f"--{name} needs positive integers separated by commas, like 1,16,64 or "
                f"1,2,4,...,256, got {text!r}"
            )
    return found


def _between(name: str, text: str, before: list[int], after: list[str]) -> list[int]:
    """What "..." stands for: the row goes on by the same factor or else by the same step."""
    if len(before) >= 2 and after and after[0].isdigit():
        (low, high), end = before[-2:], int(after[0])
        steps = {b - a for a, b in itertools.pairwise(before)}
        grows = high % low == 0 and high > low and (len(before) == 2 or len(steps) > 1)
        found, step = [], high - low
        value = high * (high // low) if grows else high + step
        while step > 0 and value < end:
            found.append(value)
            value = value * (high // low) if grows else value + step
        if value == end:
            return found
    raise ValueError(
        f"--{name} needs two sizes before ... and one after it that the row reaches, like "
        f"1,2,4,...,256, got {text!r}"
    )


def methods(text: str | None) -> list[str | None]:
    """The ways to hold weights that --quantize names."""
    if text is None:
        return [None]
    names = [part.strip() for part in text.split(",")]
    for name in names:
        if name != PLAIN and name not in METHODS:
            raise ValueError(
                f"--quantize needs methods among {', '.join((PLAIN, *METHODS))}, separated by commas, "
                f"got {name!r}"
            )
    return [None if name == PLAIN else name for name in names]
