"""Frozen configuration dataclasses to JSON and back, every field checked."""

import dataclasses
import types
import typing


def to_json(value):
    """A dataclass of dataclasses, tuples and scalars -> dicts, lists and scalars."""
    if dataclasses.is_dataclass(value):
        return {
            field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, dict):
        return {name: to_json(item) for name, item in value.items()}
    if isinstance(value, tuple):
        return [to_json(item) for item in value]
    return value


def from_json(kind, value, where: str) -> typing.Any:
    """The inverse of `to_json` for the annotated type `kind`; ValueError says where it fails."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return (
            None
            if value is None
            else from_json(next(arg for arg in args if arg is not type(None)), value, where)
        )
    if origin is typing.Literal:
        if value not in args:
            raise ValueError(f"{where} needs one of {', '.join(map(str, args))}, got {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where} needs a list, got {value!r}")
        return tuple(from_json(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{where} needs an object, got {value!r}")
        return {name: from_json(args[1], item, f"{where}.{name}") for name, item in value.items()}
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, value, where)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise ValueError(f"{where} needs {kind.__name__}, got {value!r}")
    return value


def _dataclass(kind, value, where):
    if not isinstance(value, dict):
        raise ValueError(f"{where} needs an object, got {value!r}")
    hints = typing.get_type_hints(kind)
    names = {field.name for field in dataclasses.fields(kind)}
    if unknown := set(value) - names:
        raise ValueError(
            f"{where} needs keys among {', '.join(sorted(names))}, got {', '.join(sorted(unknown))}"
        )
    required = {
        field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING
    }
    if missing := required - set(value):
        raise ValueError(f"{where} needs {', '.join(sorted(missing))}, which is missing")
    return kind(
        **{name: from_json(hints[name], item, f"{where}.{name}") for name, item in value.items()}
    )
