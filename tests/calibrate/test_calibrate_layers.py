"""One layer by every method: better than rounding to nearest by what the method itself minimizes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer import ragged
from jaxinfer.calibrate import CalibrationError, Statistics, quantize_layer
from jaxinfer.calibrate.folding import tied
from jaxinfer.calibrate.statistics import exchange, forward, linears, observe
from jaxinfer.models import decoder
from jaxinfer.quantize import QTensor, Recipe, Rounder, awq, dequantize
from tests import tiny

F32 = np.dtype(np.float32)
LARGE = (5, 17, 40)  # channels whose activations are outliers


class Case:
    """A layer, what enters it, and what its linear maps see of that."""

    def __init__(self, rng, seed, outliers=False, **changes):
        self.config = tiny.config(**{"d_model": 64, "d_ff": 96, **changes})
        self.own = self.config.layers[0]
        self.p = decoder.init(self.config, jax.random.key(seed)).layers[0]
        if outliers:
            self.p = planted(self.p)
        D, T = self.config.d_model, 4 * 32
        mixed = rng.normal(size=(T, D)) @ rng.normal(size=(D, D)) / D**0.5
        sizes = np.exp(rng.normal(size=D))
        sizes[list(LARGE)] = 1  # so that a hundred times as much is an outlier
        self.x = jnp.asarray(mixed * sizes, jnp.float32)
        tokens = jnp.zeros((4, 32), jnp.int32)
        self.batch = ragged.rectangle(tokens, jnp.full(4, 32), jnp.zeros(4, jnp.int32))
        empty = {
            name: Statistics.empty(value.w.shape[1]) for name, value in linears(self.p).items()
        }
        self.look(empty)

    def look(self, empty):
        """Statistics of the layer as it is now, in its order."""
        self.y, seen = observe(
            self.x, self.p, empty, self.batch, config=self.config, layer=self.own
        )
        self.seen = {name: seen[name] for name in empty}

    def quantized(self, recipe, **settings):
        settings = {"dtype": F32, **settings}
        return quantize_layer(self.p, self.seen, recipe, self.config, self.own, **settings)

    def error(self, p) -> float:
        """Of the layer's outputs, less what enters, relative."""
        y = forward(self.x, p, self.batch, config=self.config, layer=self.own)
        return float(jnp.linalg.norm(y - self.y) / jnp.linalg.norm(self.y - self.x))

    def nearest(self, recipe):
        new = {}
        for name, value in linears(self.p).items():
            form = recipe.form(value.w.shape[1])
            found = Rounder(recipe, form).round("w", 0, np.asarray(value.w))
            arrays = {key: jnp.asarray(x) for key, x in found.items()}
            new[name] = dataclasses.replace(value, w=QTensor(method=form.method, **arrays))
        return exchange(self.p, new)


def planted(p):
    """The same function, with a few activations after each norm a hundred times larger."""
    s = jnp.ones(64).at[jnp.asarray(LARGE)].set(100.0)
    shrunk = {
        name: dataclasses.replace(value, w=value.w / s[None])
        for name, value in linears(p).items()
        if name in ("attention.qkv", "mlp.up")
    }
    norms = {
        name: dataclasses.replace(getattr(p, name), scale=getattr(p, name).scale * s)
        for name in ("pre_attention", "pre_mlp")
    }
    return dataclasses.replace(exchange(p, shrunk), **norms)


def test_statistics_are_sums_over_the_rows_that_meet_a_weight(rng, seed):
    case = Case(rng, seed)
    first, rest = (
        Statistics.empty(64, gram=g).add(case.x[:50]).add(case.x[50:]) for g in (True, False)
    )
    x = np.asarray(case.x, np.float64)
    np.testing.assert_allclose(first.gram, x.T @ x, rtol=1e-4, atol=1e-3)
    assert rest.gram is None
    for found in (first, rest):
        assert found.count == 128
        np.testing.assert_allclose(found.top, np.abs(x).max(axis=0), rtol=1e-6)
        np.testing.assert_allclose(found.mean, np.abs(x).mean(axis=0), rtol=1e-5)
    s = rng.uniform(0.5, 2, size=64).astype(np.float32)
    moved, whole = first.divided(jnp.asarray(s)), Statistics.empty(64).add(case.x / s[None])
    for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


def test_linear_maps_see_what_the_layer_gives_them(rng, seed):
    """qkv the norm of x, down the gated halves: counted by hand."""
    case = Case(rng, seed)
    x, p = np.asarray(case.x, np.float64), case.p
    rows = x / np.sqrt((x * x).mean(axis=1, keepdims=True) + case.config.norm_eps)
    rows = rows * np.asarray(p.pre_attention.scale)
    np.testing.assert_allclose(
        case.seen["attention.qkv"].top, np.abs(rows).max(axis=0), rtol=1e-4, atol=1e-5
    )
    assert {name: len(own.top) for name, own in case.seen.items()} == {
        "attention.qkv": 64,
        "attention.out": 64,
        "mlp.up": 64,
        "mlp.down": 96,
    }


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_outputs_are_nearer_than_those_of_rounding_to_nearest(rng, seed, method, symmetric):
    case = Case(rng, seed)
    recipe = Recipe(method, group=32, symmetric=symmetric)
    small, plain = case.quantized(recipe), case.nearest(Recipe("int4", None, 32, symmetric))
    assert case.error(small) < 0.93 * case.error(plain)
    if method == "gptq":  # weight by weight; AWQ's are scaled
        for name, own in case.seen.items():
            w = linears(case.p)[name].w
            losses = [
                float(awq.loss(dequantize(linears(p)[name].w) - w, own.gram))
                for p in (small, plain)
            ]
            assert losses[0] < 0.9 * losses[1], name


@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_eight_bits(rng, seed, method):
    case = Case(rng, seed)
    small, plain = case.quantized(Recipe(method, bits=8)), case.nearest(Recipe("int8"))
    assert {value.w.kind for value in linears(small).values()} == {"int8"}
    assert case.error(small) < case.error(plain) < 0.03


@pytest.mark.parametrize("method", ["smoothquant", "llm_int8"])
def test_planted_outliers_do_not_spoil_eight_bit_activations(rng, seed, method):
    case = Case(rng, seed, outliers=True)
    plain = case.error(case.nearest(Recipe("w8a8")))
    small = case.quantized(Recipe(method))
    assert plain > 0.03
    assert case.error(small) < 0.4 * plain
    for name in ("attention.qkv", "mlp.up"):
        w = linears(small)[name].w
        if method == "llm_int8":
            assert set(LARGE) <= set(np.asarray(w.columns).tolist())


def test_without_a_norm_before_it_a_map_divides_by_itself(rng, seed):
    case = Case(rng, seed, norm_style="post")
    small = case.quantized(Recipe("awq", group=32))
    smooth = {name: value.w.smooth for name, value in linears(small).items()}
    assert [name for name, s in smooth.items() if s is not None] == ["attention.qkv", "mlp.up"]
    assert case.error(small) < case.error(case.nearest(Recipe("int4", None, 32)))


@pytest.mark.parametrize("method", ["awq", "gptq", "smoothquant", "llm_int8"])
def test_rows_and_columns_of_zeros(rng, seed, method):
    """Dead rows stay zero and dead activations disturb nothing."""
    case = Case(rng, seed)
    p = case.p
    up = p.mlp.up.w.at[7].set(0).at[96 + 7].set(0)  # gate and up of one channel
    down = p.mlp.down.w.at[3].set(0)
    case.p = exchange(
        p,
        {
            "mlp.up": dataclasses.replace(p.mlp.up, w=up),
            "mlp.down": dataclasses.replace(p.mlp.down, w=down),
        },
    )
    empty = {name: Statistics.empty(value.w.shape[1]) for name, value in linears(p).items()}
    case.look(empty)
    assert float(case.seen["mlp.down"].top[7]) == 0
    small = case.quantized(Recipe(method))
    assert not np.asarray(dequantize(small.mlp.down.w))[3].any()
    assert not np.asarray(dequantize(small.mlp.up.w))[7].any()
    assert case.error(small) < 0.5


@pytest.mark.parametrize("group", [8, 16])
@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_tiny_groups_and_odd_widths(rng, seed, method, group):
    case = Case(rng, seed, d_model=48, d_ff=80)
    small = case.quantized(Recipe(method, group=group))
    assert {value.w.group for value in linears(small).values()} == {group}
    assert case.error(small) < case.error(case.nearest(Recipe("int4", None, group)))


@pytest.mark.parametrize("method", ["awq", "gptq", "smoothquant", "llm_int8"])
@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_what_is_not_finite_is_refused(rng, seed, method, bad):
    case = Case(rng, seed)
    whole = case.p
    broken = linears(whole)["mlp.down"].w.at[3, 5].set(bad)
    case.p = exchange(whole, {"mlp.down": dataclasses.replace(whole.mlp.down, w=broken)})
    with pytest.raises(ValueError, match="finite weights"):
        case.quantized(Recipe(method))
    case.p = whole
    own = case.seen["mlp.up"].add(jnp.full((1, 64), bad, jnp.float32))
    case.seen = {**case.seen, "mlp.up": own}
    with pytest.raises(CalibrationError, match=r"finite activations.* before mlp\.up"):
        case.quantized(Recipe(method))


def test_groups_that_do_not_divide_are_refused(rng, seed):
    case = Case(rng, seed)
    for method in ("awq", "gptq"):
        with pytest.raises(ValueError, match=r"whole groups of 64 columns, got 96"):
            case.quantized(Recipe(method, group=64))


def test_the_scale_of_attention_outputs_is_shared_by_the_heads_of_a_group(rng, seed):
    case = Case(rng, seed)
    own = case.seen["attention.out"]
    mean = tied(own.mean, "attention.out", case.config, case.own)
    s = awq.scales(linears(case.p)["attention.out"].w, own.gram, mean, 32, True).reshape(2, 2, 16)
    np.testing.assert_array_equal(s[:, 0], s[:, 1])
