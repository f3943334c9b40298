"""One layer's weights from float to a recipe's form, by what they have seen."""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer.calibrate.folding import fold, tied
from jaxinfer.calibrate.statistics import Statistics, exchange, linears
from jaxinfer.config import LayerConfig, ModelConfig
from jaxinfer.models.decoder import Layer
from jaxinfer.models.linear import Linear
from jaxinfer.quantize import QTensor, Recipe, Rounder, awq, gptq, grid, llm_int8
from jaxinfer.quantize.smoothquant import smoothing

SMOOTHED = ("smoothquant", "awq")
NOT_CLIPPED = ("attention.qkv",)  # as in AWQ's code: q and k multiply each other

_scales = functools.partial(jax.jit, static_argnames=("group", "symmetric"))(awq.scales)
_clip = functools.partial(jax.jit, static_argnames=("group", "symmetric"))(awq.clip)
_solve = functools.partial(jax.jit, static_argnames=("group", "symmetric", "act_order", "damp"))(
    gptq.solve
)


class CalibrationError(ValueError):
    """Text that tells a method nothing it can use."""


def quantize_layer(
    p: Layer,
    seen: Mapping[str, Statistics],
    recipe: Recipe,
    config: ModelConfig,
    layer: LayerConfig,
    *,
    act_order: bool = True,
    clip: bool = True,
    dtype: np.dtype,
) -> Layer:
    """A float32 layer (of one shard), and what its linear maps have seen -> the layer by `recipe`.

    act_order, clip: as `calibrate` takes them. dtype: in which norms and biases will be kept.
    ValueError: groups that do not divide, weights that are not finite; CalibrationError:
    activations that are not.
    """
    for name in linears(p):
        if not bool(jnp.isfinite(seen[name].total).all()):
            raise CalibrationError(
                f"calibration needs finite activations, got infinities or NaN before {name}; check "
                "the model, or calibrate with other text"
            )
    factors: dict[str, jax.Array] = {}
    seen = dict(seen)
    if recipe.method in SMOOTHED:
        p, seen, factors = _smooth(p, seen, recipe, config, layer, dtype)
    new = {}
    for name, value in linears(p).items():
        w = _float(value)
        form = recipe.form(w.shape[1])
        if recipe.method == "gptq":
            held = _gptq(w, seen[name], recipe, form, act_order, clip)
        else:
            held = _weight(w, seen[name], recipe, form, name)
        if name in factors:
            held = held.replace(smooth=1 / factors[name])
        new[name] = dataclasses.replace(value, w=held)
    return exchange(p, new)


def _float(value: Linear) -> jax.Array:
    assert isinstance(value.w, jax.Array)
    return value.w


def _smooth(p, seen, recipe, config, layer, dtype):
    """Weights multiplied and what comes before them divided, map after map."""
    factors = {}
    for name in linears(p):
        value, own = linears(p)[name], seen[name]
        w = _float(value)
        if recipe.method == "awq":
            form = recipe.form(w.shape[1])
            mean = tied(own.mean, name, config, layer)
            s = _scales(w, own.gram, mean, group=form.group, symmetric=recipe.symmetric)
        else:
            top_x = tied(own.top, name, config, layer)
            s = smoothing(top_x, tied(jnp.abs(w).max(axis=0), name, config, layer))
        folded = fold(p, name, s, config, layer, dtype)
        if folded is None:
            factors[name] = s
        else:
            p, s = folded
        p = exchange(p, {name: dataclasses.replace(value, w=w * s[None])})
        seen[name] = own.divided(s)
    return p, seen, factors


def _weight(w, own: Statistics, recipe: Recipe, form, name: str) -> QTensor:
    columns = None
    if recipe.method == "awq" and form.group and name not in NOT_CLIPPED:
        w = _clip(w, own.gram, group=form.group, symmetric=recipe.symmetric)
    if recipe.method == "llm_int8":
        columns = llm_int8.columns_from_activations(np.asarray(own.top))
        form = dataclasses.replace(form, outliers=len(columns))
    found = Rounder(recipe, form, columns).round("w", 0, np.asarray(w))
    if columns is not None:
        found["columns"] = columns
    return QTensor(method=form.method, **{key: jnp.asarray(x) for key, x in found.items()})


def _gptq(w, own: Statistics, recipe: Recipe, form, act_order: bool, clip: bool) -> QTensor:
    grid.check_finite(np.asarray(w), form.kind)
    grids = w
    if form.group and clip:  # as the authors' `mse` option, by what the activations show
        grids = _clip(w, own.gram, group=form.group, symmetric=recipe.symmetric)
    for damp in (gptq.DAMP, 10 * gptq.DAMP, 100 * gptq.DAMP):
        numbers, scale, zero = _solve(
            w,
            own.gram,
            grids,
            group=form.group,
            symmetric=recipe.symmetric,
            act_order=act_order,
            damp=damp,
        )
        if bool(jnp.isfinite(numbers).all()):
            break
    else:
        raise CalibrationError(
            "GPTQ needs activations that span more than calibration's did (its Hessian has no "
            "Cholesky factor); calibrate with more text"
        )
    if form.kind == "int8":
        return QTensor(numbers.astype(jnp.int8), scale, "int8")
    words = jnp.asarray(grid.pack(np.asarray(numbers)))
    small = None if zero is None else zero.astype(jnp.bfloat16)
    return QTensor(words, scale.astype(jnp.bfloat16), "int4", zero=small)
