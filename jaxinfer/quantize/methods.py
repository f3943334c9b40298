"""The methods by name."""

from typing import Literal, get_args

Method = Literal["int8", "w8a8"]
METHODS: tuple[str, ...] = get_args(Method)


def check_method(method: str | None) -> None:
    """ValueError unless `method` is None or one of METHODS."""
    if method is not None and method not in METHODS:
        raise ValueError(f"quantize needs one of {', '.join(METHODS)} or None, got {method!r}")
