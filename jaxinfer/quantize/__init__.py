"""Quantized weights, and the one einsum that knows them.

A weight is stored `[out, in]`, either as a plain array or as a `QTensor`; every matrix product of a
model goes through `einsum`, so nothing else needs to know which. A `Recipe` names a method and its
settings, a `Form` the arrays that hold one weight. Methods, a file each: `rtn` ("int8", "int4"),
`fp8`, `w8a8`, `llm_int8`, which need weights alone; `smoothquant`, `awq` and `gptq` need statistics
of the activations, which `jaxinfer.calibrate` gathers.
"""

from jaxinfer.quantize.einsum import einsum, skinny
from jaxinfer.quantize.form import ARRAYS, Form, Part, divides, form_of
from jaxinfer.quantize.recipe import CALIBRATED, METHODS, Method, Recipe, check_method, find
from jaxinfer.quantize.rounding import Rounder
from jaxinfer.quantize.rtn import round_groups, round_rows
from jaxinfer.quantize.tensor import QTensor, Weight, dequantize, parts, rows

__all__ = [
    "ARRAYS",
    "CALIBRATED",
    "METHODS",
    "Form",
    "Method",
    "Part",
    "QTensor",
    "Recipe",
    "Rounder",
    "Weight",
    "check_method",
    "dequantize",
    "divides",
    "einsum",
    "find",
    "form_of",
    "parts",
    "round_groups",
    "round_rows",
    "rows",
    "skinny",
]
