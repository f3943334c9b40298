"""Values of a quantization_config, checked."""

from collections.abc import Mapping
from typing import Any

WHERE = "quantization_config"


def one_of(config: Mapping, names: tuple[str, ...], allowed: tuple, default=None) -> Any:
    """The value of the first of `names` that is there (else the default), which needs to be among
    `allowed`.
    """
    found = next((name for name in names if config.get(name) is not None), None)
    value = default if found is None else config[found]
    if not any(value == other and type(value) is type(other) for other in allowed):
        words = ", ".join(map(str, allowed))
        raise ValueError(f"{WHERE} needs {names[0]} to be one of {words}, got {value!r}")
    return value


def flag(config: Mapping, name: str, default: bool) -> bool:
    """config[name], true or false."""
    value = config.get(name)
    value = default if value is None else value
    if not isinstance(value, bool):
        raise ValueError(f"{WHERE} needs {name} to be true or false, got {value!r}")
    return value


def positive(config: Mapping, name: str) -> int:
    """config[name], a positive integer."""
    value = config.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise ValueError(f"{WHERE} needs {name} to be a positive integer, got {value!r}")
    return value


def group_size(config: Mapping, names: tuple[str, ...] = ("group_size",)) -> int | None:
    """How many columns share a scale; None (-1 in the file): all."""
    found = next((name for name in names if config.get(name) is not None), names[0])
    return None if config.get(found) == -1 else positive(config, found)


def mapping(value, name: str) -> Mapping:
    """An object; null is an empty one."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"{WHERE} needs {name} to be an object, got {value!r}")
    return value


def block(value, name: str) -> tuple[int, int]:
    """Two positive integers: the rows and columns of a block."""
    whole = isinstance(value, (list, tuple)) and len(value) == 2
    if not whole or not all(type(n) is int and n > 0 for n in value):
        raise ValueError(f"{WHERE} needs {name} to be two positive integers, got {value!r}")
    return value[0], value[1]
