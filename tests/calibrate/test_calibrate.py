"""A whole checkpoint by calibration: near the float model, saved, restored, and what is refused."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer import quantize, ragged, weights
from jaxinfer.calibrate import CalibrationError, Statistics, calibrate, quantize_layer
from jaxinfer.calibrate.statistics import forward, linears, observe
from jaxinfer.generate import logits
from jaxinfer.models import decoder
from jaxinfer.quantize import Recipe
from jaxinfer.weights import orbax
from tests.weights import checkpoints

RECIPES = {
    "awq": Recipe("awq", group=16),
    "gptq": Recipe("gptq", group=16, symmetric=False),
    "gptq8": Recipe("gptq", bits=8),
    "smoothquant": Recipe("smoothquant"),
    "llm_int8": Recipe("llm_int8"),
}


@pytest.fixture
def text(rng):
    """Ids of which some are far more frequent than others."""
    return (259 * rng.uniform(size=1500) ** 3).astype(int).tolist()


@pytest.fixture
def folder(tmp_path):
    checkpoints.fresh(tmp_path / "hf")
    return tmp_path


def error(params, other, config, ids) -> float:
    tokens = jnp.asarray(ids[:240], jnp.int32).reshape(4, 60)
    ours, theirs = (logits(p, config, tokens) for p in (params, other))
    return float(jnp.linalg.norm(ours - theirs) / jnp.linalg.norm(ours))


@pytest.mark.parametrize(
    ("name", "tied"), [*((name, False) for name in RECIPES), ("awq", True), ("llm_int8", True)]
)
def test_a_calibrated_model_is_near_and_comes_back_as_it_was(tmp_path, text, name, tied):
    _, config, _ = checkpoints.fresh(tmp_path / "hf", tie_word_embeddings=tied)
    recipe, seen = RECIPES[name], []
    found = calibrate(
        tmp_path / "hf",
        recipe,
        text,
        window=50,
        tokens=700,
        progress=lambda done, of: seen.append((done, of)),
    )
    assert seen == [(1, 2), (2, 2)]
    exact = weights.load(tmp_path / "hf").params
    assert 0 < error(exact, found.params, config, text) < 0.25
    described = decoder.leaves(config)
    values = jax.tree.leaves(found.params, is_leaf=decoder.is_leaf)
    for leaf, value in zip(described, values, strict=True):
        assert isinstance(value, quantize.QTensor) == leaf.quantizable, leaf
        if leaf.head:  # a tied embedding too
            assert value.kind == "int8"
    orbax.save(tmp_path / "saved", found.params, config, method=recipe.method)
    again = weights.load(tmp_path / "saved")
    assert checkpoints.equal(again.params, found.params)
    assert weights.describe(tmp_path / "saved")["quantize"] == recipe.method
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(found.params))
    assert weights.describe(tmp_path / "saved")["bytes"] == held


def test_gptq_beats_rounding_to_nearest_through_the_model(folder, text):
    exact = weights.load(folder / "hf")
    plain = weights.load(folder / "hf", quantize=Recipe("int4", group=16)).params
    found = calibrate(folder / "hf", Recipe("gptq", group=16), text, window=50).params
    ours, theirs = (error(exact.params, p, exact.config, text) for p in (found, plain))
    assert ours < theirs


def test_grids_of_gptq_leave_out_large_weights_unless_told_not_to(folder, text):
    """Whole, each scale is that of its group's largest weight; clipped, some are smaller."""
    recipe = Recipe("gptq", group=16)
    cut, whole = (
        calibrate(folder / "hf", recipe, text, window=50, clip=clip).params.layers[0].mlp.up.w
        for clip in (True, False)
    )
    plain = weights.load(folder / "hf", quantize=Recipe("int4", group=16)).params.layers[0].mlp.up.w
    np.testing.assert_array_equal(whole.scale, plain.scale)
    assert (cut.scale <= whole.scale).all()
    assert (cut.scale < whole.scale).any()


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_layers_of_gptq_see_what_quantized_layers_give_others_what_float_ones(folder, text, method):
    recipe = Recipe(method, group=16)
    found = calibrate(folder / "hf", recipe, text[:50], window=50, tokens=50).params
    exact = weights.load(folder / "hf")
    params, config = exact.params, exact.config
    tokens = jnp.asarray(text[:50], jnp.int32)[None]
    batch = ragged.rectangle(tokens, jnp.full(1, 50), jnp.zeros(1, jnp.int32))
    x = decoder.embed(params, config, batch)
    for p, own, layer in zip(params.layers, config.layers, found.layers, strict=True):
        about = dict(config=config, layer=own)
        seen = {name: Statistics.empty(value.w.shape[1]) for name, value in linears(p).items()}
        y, seen = observe(x, p, seen, batch, **about)
        small = quantize_layer(p, seen, recipe, config, own, dtype=np.dtype(np.float32))
        assert checkpoints.equal(layer, small)
        x = forward(x, small, batch, **about) if method == "gptq" else y


def test_the_text_is_read_at_even_distances_and_no_further(folder, text):
    """What lies between the windows does not matter."""
    recipe = Recipe("awq", group=16)
    found = calibrate(folder / "hf", recipe, text, window=50, tokens=100).params
    other = [*text[:50], *(0 for _ in text[50:-50]), *text[-50:]]
    same = calibrate(folder / "hf", recipe, other, window=50, tokens=100).params
    assert checkpoints.equal(found, same)
    changed = calibrate(folder / "hf", recipe, other, window=50, tokens=300).params
    assert not checkpoints.equal(found, changed)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_not_rounded_has_the_wanted_dtype(folder, text, dtype):
    found = calibrate(folder / "hf", Recipe("awq", group=16), text, window=50, dtype=dtype).params
    assert found.norm.scale.dtype == dtype
    assert found.layers[0].pre_mlp.scale.dtype == dtype
    assert found.layers[0].mlp.up.w.values.dtype == jnp.int32


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (dict(window=1), "window of at least 2 tokens"),
        (dict(window=50, tokens=49), "at least one window"),
        (dict(window=128, ids=100), "at least 128 tokens of text, got 100"),
    ],
)
def test_texts_and_windows_that_do_not_fit_are_refused(folder, text, settings, says):
    ids = text[: settings.pop("ids", 1500)]
    with pytest.raises(ValueError, match=says):
        calibrate(folder / "hf", Recipe("awq", group=16), ids, **settings)


def test_a_window_longer_than_the_context_is_cut(folder, text):
    short = calibrate(folder / "hf", Recipe("smoothquant"), text, window=128, tokens=1280)
    long = calibrate(folder / "hf", Recipe("smoothquant"), text, window=9999, tokens=1280)
    assert checkpoints.equal(short.params, long.params)


def test_groups_and_weights_that_do_not_fit_name_the_layer(tmp_path, text):
    _, config, canonical = checkpoints.fresh(tmp_path / "hf")
    with pytest.raises(weights.CheckpointError, match="layer 0: gptq needs whole groups of 64"):
        calibrate(tmp_path / "hf", Recipe("gptq", group=64), text, window=50)
    family = weights.read_config(tmp_path / "hf")[1]
    canonical["layers.1.mlp.up.w"][3, 5] = np.inf
    files = checkpoints.file_tensors(family, config, canonical)
    checkpoints.write(tmp_path / "bad", checkpoints.LLAMA, files)
    for method in ("gptq", "smoothquant"):
        with pytest.raises(ValueError, match="finite"):
            calibrate(tmp_path / "bad", Recipe(method), text, window=50)
    canonical["embed"][0] = np.nan
    checkpoints.write(
        tmp_path / "worse", checkpoints.LLAMA, checkpoints.file_tensors(family, config, canonical)
    )
    with pytest.raises(CalibrationError, match=r"finite activations.* before attention\.qkv"):
        calibrate(tmp_path / "worse", Recipe("awq"), [0] * 100, window=50)


def test_memory_grows_by_the_small_form_of_each_layer_alone(tmp_path, text):
    sizes = dict(num_hidden_layers=6, hidden_size=128, intermediate_size=384)
    checkpoints.fresh(tmp_path, **sizes)
    held = []

    def progress(done, of):
        gc.collect()
        held.append(sum(array.nbytes for array in jax.live_arrays()))

    found = calibrate(tmp_path, Recipe("gptq", group=64), text, window=50, progress=progress)
    layer = sum(leaf.nbytes for leaf in jax.tree.leaves(found.params.layers[0]))
    assert np.diff(held).tolist() == [layer] * 5
