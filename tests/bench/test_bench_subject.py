"""What is measured: random weights with the shapes of real ones, and how much of everything there is."""

import jax
import numpy as np
import pytest

from jaxinfer.bench import slots
from jaxinfer.bench.subject import Subject, find_config, prepare, random_params
from jaxinfer.models import decoder, presets
from jaxinfer.quantize import METHODS, QTensor, Recipe, dequantize
from jaxinfer.roofline.memory import cache_bytes
from pallas_kernels.narrow import widened
from tests import tiny


def test_random_parameters_have_the_shapes_and_sizes_of_drawn_ones(seed):
    config = tiny.config(d_model=64, d_ff=128, vocab_size=500)
    found = random_params(config, np.dtype("float32"), None, seed)
    truth = decoder.init(config, jax.random.key(seed))
    assert jax.tree.structure(found) == jax.tree.structure(truth)
    for mine, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(truth), strict=True):
        assert mine.shape == theirs.shape
        assert mine.dtype == theirs.dtype
        assert float(np.std(mine)) == pytest.approx(float(np.std(theirs)), rel=0.1, abs=1e-6)
        assert float(np.mean(mine)) == pytest.approx(float(np.mean(theirs)), abs=0.02)
    first, second = (layer.mlp.down.w for layer in found.layers)
    assert not np.allclose(first, second)


@pytest.mark.parametrize("method", METHODS)
def test_random_quantized_parameters(method, seed):
    config = tiny.config(d_model=64, d_ff=128, vocab_size=500)
    found = random_params(config, np.dtype("float32"), method, seed)
    truth = decoder.init(config, jax.random.key(seed))
    up, plain = found.layers[1].mlp.up.w, truth.layers[1].mlp.up.w
    assert isinstance(up, QTensor)
    form = Recipe(method).form(64)
    assert up.method == form.method
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(up)) == form.nbytes(plain.shape)
    wide = dequantize(up.replace(outliers=None))
    assert wide.shape == plain.shape
    assert np.std(wide) == pytest.approx(float(np.std(plain)), rel=0.1)
    if up.kind == "int8":
        assert np.abs(up.values.astype(np.int32)).max() == 127
    assert not isinstance(found.norm.scale, QTensor)


def test_presets_are_for_random_weights():
    name, config = find_config("Llama-3.2-1B", "random")
    assert (name, config) == ("llama-3.2-1b", presets.find("llama-3.2-1b"))
    with pytest.raises(ValueError, match="add --weights=random"):
        find_config("llama-3.2-1b", "checkpoint")
    with pytest.raises(ValueError, match=r"preset such as .*llama-3\.2-1b"):
        find_config("llama-3.2-1x", "random")


def test_the_shipped_model_random_or_not():
    read = prepare(None, dtype=None, quantize="int8")
    drawn = prepare(None, source="random", dtype=None, quantize="int8")
    assert read.config == drawn.config
    assert read.name == drawn.name == "pico-20m"
    assert read.weight_bytes == drawn.weight_bytes
    assert jax.tree.structure(read.params) == jax.tree.structure(drawn.params)
    assert drawn.describe() == {
        "model": "pico-20m",
        "weights": "random",
        "dtype": "float32",
        "quantize": "int8",
        "kv_dtype": "float32",
    }


@pytest.mark.parametrize("name", ["int8", "fp8"])
def test_narrow_caches_hold_what_is_in_reach_of_their_type(seed, name):
    config = tiny.config(layers=tiny.config().layers[:1])
    params = tiny.params(config, seed)
    subject = Subject("tiny", params, config, "random", "float32", None, name)
    assert subject.describe()["kv_dtype"] == subject.cache_format.name == name
    pages = slots.filled(subject, 2, 64).cache.layers[0]
    held = sum(x.nbytes for x in jax.tree.leaves(pages))
    assert held == 2 * 64 * cache_bytes(config, 1, subject.cache_format)
    for values, scale in ((pages.k, pages.k_scale), (pages.v, pages.v_scale)):
        drawn = widened(values, np.float32) * scale[..., None]
        assert float(np.std(drawn)) == pytest.approx(1.0, rel=0.1)
        assert np.isfinite(drawn).all()


@pytest.mark.parametrize(
    ("dtype", "method", "bits", "compute"),
    [
        ("float32", None, 32, "float32"),
        ("bfloat16", None, 16, "bfloat16"),
        ("bfloat16", "int8", 8, "bfloat16"),
        ("float32", "int8", 8, "float32"),
        ("float32", "w8a8", 8, "int8"),
    ],
)
def test_formats_for_the_roofline(dtype, method, bits, compute):
    config = tiny.config()
    params = random_params(config, np.dtype(jax.numpy.dtype(dtype)), method, 0)
    subject = Subject("tiny", params, config, "random", dtype, method)
    assert (subject.format.bits, subject.format.compute) == (bits, compute)
    assert subject.format.plain == jax.numpy.dtype(dtype).itemsize
    assert subject.weight_bytes == sum(x.nbytes for x in jax.tree.leaves(params))
