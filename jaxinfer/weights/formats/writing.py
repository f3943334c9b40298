"""What the formats that are written share: a weight's numbers on the host, and the settings of a file.

A `Writer` names the tensors of each weight before there are any, then makes those of one weight at a
time. All weights of a file have one kind of value and one group; where groups differ, scales are
repeated for the largest that divides all.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from jaxinfer.quantize import Form
from jaxinfer.quantize.grid import MIDDLE

Described = dict[str, tuple[tuple[int, ...], np.dtype]]


@dataclass(frozen=True)
class Held:
    """A weight [out, in], n of its rows or all: values uint8 nibbles, int8 or float8_e4m3fn; scale
    [out, groups]; zero [out, groups] or None; order as in `QTensor`.
    """

    values: np.ndarray
    scale: np.ndarray
    zero: np.ndarray | None = None
    order: np.ndarray | None = None


@dataclass(frozen=True)
class Settings:
    """What holds for all weights of a file. group None: all columns of a row share a scale. scale:
    the type of scales. plain: modules whose weights stay floats.
    """

    kind: str
    method: str
    group: int | None
    zero: bool
    order: bool
    scale: np.dtype
    plain: tuple[str, ...] = ()

    def regroup(self, held: Held) -> Held:
        """The same weight with this file's groups; zero points where it has them."""
        columns, groups = held.values.shape[1], held.scale.shape[1]
        repeats = 1 if self.group is None else columns // groups // self.group
        zero = held.zero
        if self.zero and zero is None:
            zero = np.full(held.scale.shape, MIDDLE if self.kind == "int4" else 0)
        scale = np.repeat(held.scale, repeats, axis=1).astype(self.scale)
        zero = np.repeat(zero, repeats, axis=1) if self.zero and zero is not None else None
        return Held(held.values, scale, zero, held.order)


@dataclass(frozen=True)
class Writer:
    """config: the quantization_config. tensors(stem, shape): names and kinds of a weight's tensors.
    arrays(stem, held): the tensors.
    """

    config: dict
    tensors: Callable[[str, tuple[int, int]], Described]
    arrays: Callable[[str, Held], dict[str, np.ndarray]]


def settings(
    forms: Mapping[str, tuple[Form, tuple[int, int]]], scale: np.dtype, plain: tuple[str, ...]
) -> Settings:
    """What serves all of `forms`, by the names of their weights; ValueError where nothing does."""
    for name, (form, _) in forms.items():
        if form.smooth or form.outliers:
            what = "a smoothing of its activations" if form.smooth else "columns kept beside it"
            raise ValueError(f"{name} has {what}, which only the Orbax layout holds; save it so")
    kinds = {(form.kind, form.method) for form, _ in forms.values()}
    if len(kinds) != 1:
        raise ValueError(
            f"one kind of weight is needed, got {', '.join(sorted(kind for kind, _ in kinds))}; save "
            "with Orbax"
        )
    kind, method = kinds.pop()
    grouped = any(form.group is not None for form, _ in forms.values())
    group = math.gcd(*(form.group or shape[1] for form, shape in forms.values()))
    zero = any(form.zero for form, _ in forms.values())
    order = any(form.order for form, _ in forms.values())
    return Settings(kind, method, group if grouped else None, zero, order, scale, plain)


def require(settings: Settings, name: str, kinds: tuple[str, ...], *, order: bool = False) -> None:
    """ValueError unless the format `name` holds such weights."""
    if settings.kind not in kinds:
        raise ValueError(f"{name} holds {' or '.join(kinds)} weights, got {settings.kind}")
    if settings.order and not order:
        raise ValueError(f"{name} holds no act-order columns; write gptq, or save with Orbax")


def check_shape(name: str, stem: str, shape: tuple[int, int], each: int) -> None:
    """ValueError unless rows and columns fill whole words of `each` values."""
    if shape[0] % each or shape[1] % each:
        raise ValueError(
            f"{name} needs rows and columns in multiples of {each}, got {list(shape)} of {stem}; save "
            "with Orbax"
        )


def scale_dtype(scales, wanted: tuple[np.dtype, ...]) -> np.dtype:
    """The first of `wanted` that holds all of an iterable of scales exactly; else float32."""
    left = list(wanted)
    for array in scales:
        exact = array.astype(np.float32)
        with np.errstate(over="ignore"):
            left = [kind for kind in left if (exact.astype(kind).astype(np.float32) == exact).all()]
        if not left:
            return np.dtype(np.float32)
    return left[0]
