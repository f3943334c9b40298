"""Quantized weights, and the one einsum that knows them.

A weight is stored `[out, in]`, either as a plain array or as a `QTensor`; every matrix product of a
model goes through `einsum`, so nothing else needs to know which. Methods: "int8" (round to nearest,
one scale per output channel) and "w8a8" (the same weights; activations too are rounded to int8, one
scale per row, so that the product runs on integers).
"""

from jaxinfer.quantize.einsum import einsum, skinny
from jaxinfer.quantize.methods import METHODS, Method, check_method
from jaxinfer.quantize.rtn import round_rows
from jaxinfer.quantize.tensor import QTensor, Weight, parts, rows

__all__ = [
    "METHODS",
    "Method",
    "QTensor",
    "Weight",
    "check_method",
    "einsum",
    "parts",
    "round_rows",
    "rows",
    "skinny",
]
