"""Quantized parameters as the tensors of another project's format: the inverse of `prequantized`."""

from dataclasses import dataclass

import numpy as np

from jaxinfer.models.family import Source
from jaxinfer.quantize import Form, QTensor, form_of
from jaxinfer.quantize.form import ARRAYS
from jaxinfer.weights.formats import WRITERS, Writer, words, writing

HALF_FIRST = ("awq", "gptq")  # their kernels take float16 scales


@dataclass(frozen=True)
class Span:
    """Rows first .. of a file's weight: rows at .. at + count of a parameter."""

    first: int
    count: int
    value: QTensor
    at: int


class Repacker:
    """The tensors of every packed weight of a file. spans: by a weight's name, shapes: [out, in] of
    them. plain: weights that stay floats. ValueError: the format cannot hold them.
    """

    def __init__(self, name: str, spans: dict[str, list[Span]], shapes: dict, plain, dtype):
        if name not in WRITERS:
            raise ValueError(f"format needs one of {', '.join(WRITERS)}, got {name!r}")
        if not spans:
            raise ValueError(
                f"{name} needs quantized parameters, got plain ones; quantize them, or leave it out"
            )
        half, own = np.dtype(np.float16), np.dtype(dtype)
        wanted = (half, own) if name in HALF_FIRST else (own, half)
        values = {id(span.value): span.value for parts in spans.values() for span in parts}
        scale = writing.scale_dtype((np.asarray(x.scale) for x in values.values()), wanted)
        forms = {
            weight: (_form(span.value), shapes[weight])
            for weight, parts in spans.items()
            for span in parts
        }
        modules = tuple(weight.removesuffix(".weight") for weight in plain)
        self._settings = writing.settings(forms, scale, modules)
        self._writer: Writer = WRITERS[name](self._settings)
        self._spans, self._owner, self._made = spans, {}, ("", {})
        self.config = self._writer.config
        self.tensors: writing.Described = {}
        for weight in spans:
            found = self._writer.tensors(weight.removesuffix(".weight"), shapes[weight])
            self._owner |= dict.fromkeys(found, weight)
            self.tensors |= found

    def read(self, tensor: str) -> np.ndarray:
        """One tensor; those of one weight follow each other, and are made together."""
        weight = self._owner[tensor]
        if self._made[0] != weight:
            held = _held(self._spans[weight], self._settings)
            arrays = self._writer.arrays(weight.removesuffix(".weight"), held)
            self._made = weight, arrays
        return self._made[1][tensor]


def packable(name: str, members: list[tuple[str, Source]], values: list) -> bool:
    """Whether a file's tensor is a linear map all of whose rows are quantized."""
    maps = all(part not in ("embed", "unembed") and not s.transposed for part, s in members)
    return maps and name.endswith(".weight") and all(isinstance(x, QTensor) for x in values)


def _form(value: QTensor) -> Form:
    found = {name: getattr(value, name) for name in ARRAYS}
    return form_of(
        value.method, {name: (x.shape, x.dtype) for name, x in found.items() if x is not None}
    )


def _held(spans: list[Span], settings: writing.Settings) -> writing.Held:
    parts = []
    for span in sorted(spans, key=lambda span: span.first):
        value, rows = span.value, slice(span.at, span.at + span.count)
        numbers = np.asarray(value.values[rows])
        if value.kind == "int4":  # our own words have AWQ's order
            numbers = words.from_awq(words.unpack(numbers, 4))
        scale = np.asarray(value.scale[rows]).reshape(span.count, -1)
        zero = None if value.zero is None else np.asarray(value.zero[rows]).astype(np.int32)
        order = None if value.order is None else np.asarray(value.order)
        parts.append(settings.regroup(writing.Held(numbers, scale, zero, order)))
    zero = [part.zero for part in parts if part.zero is not None]
    return writing.Held(
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.scale for part in parts]),
        np.concatenate(zero) if zero else None,
        parts[0].order,
    )
