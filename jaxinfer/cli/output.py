"""What commands write: text and one JSON object on stdout, everything else on stderr."""

import json
import math
import os
import sys
import unicodedata
from typing import Any, TextIO


def is_terminal(stream: TextIO) -> bool:
    return stream.isatty()


def write(text: str) -> None:
    """Text on stdout, shown at once.

    On a terminal control characters become U+FFFD: models must not steer it.
    """
    if is_terminal(sys.stdout):
        text = "".join(
            c if c in "\n\t" or unicodedata.category(c) != "Cc" else "\ufffd" for c in text
        )
    sys.stdout.write(text)
    sys.stdout.flush()


def dim(text: str, stream: TextIO) -> str:
    """Text in a fainter colour where `stream` is a terminal that has colours."""
    plain = not is_terminal(stream) or "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
    return text if plain else f"\x1b[2m{text}\x1b[0m"


def note(text: str) -> None:
    """A line about the work on stderr."""
    print(dim(text, sys.stderr), file=sys.stderr, flush=True)


def write_json(value: Any) -> None:
    """The one machine-readable object, on one line.

    Numbers that JSON lacks (infinities, NaN) become null.
    """
    sys.stdout.write(json.dumps(_finite(value), ensure_ascii=False, allow_nan=False) + "\n")
    sys.stdout.flush()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def table(rows: dict[str, Any]) -> None:
    """Names and values in two columns."""
    width = max(map(len, rows))
    write("".join(f"{name:<{width}}  {value}\n" for name, value in rows.items()))


def rate(tokens_per_s: float | None) -> str:
    return "" if tokens_per_s is None else f", {tokens_per_s:.1f} tokens/s"
