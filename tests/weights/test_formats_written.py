"""Quantized parameters written in the formats of other projects, read back by us and by them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme
from safetensors.torch import load_file

from jaxinfer import quantize, ragged, weights
from jaxinfer.models import decoder
from jaxinfer.quantize import Recipe
from tests.weights import checkpoints, packing
from tests.weights.test_formats import AWQ, GPTQ, shuffled

HF = checkpoints.LLAMA | {"intermediate_size": 128}
ZEROS = Recipe("int4", group=32, symmetric=False)
PAIRS = [
    ("gptq", Recipe("int4")),
    ("gptq", ZEROS),
    ("gptq", Recipe("int8")),
    ("awq", Recipe("int4")),
    ("awq", ZEROS),
    ("compressed-tensors", Recipe("int4")),
    ("compressed-tensors", ZEROS),
    ("compressed-tensors", Recipe("int8")),
    ("compressed-tensors", Recipe("w8a8")),
    ("compressed-tensors", Recipe("fp8")),
]
IDS = [f"{name} {recipe}" for name, recipe in PAIRS]


def written(folder, name, recipe):
    """A fresh model, quantized and written: its parameters, its config, the new folder."""
    family, config, _ = checkpoints.fresh(folder / "plain", intermediate_size=128)
    loaded = weights.load(folder / "plain", dtype="float32", quantize=recipe)
    weights.save(folder / "new", loaded.params, config, family, HF, format=name)
    return loaded.params, config, folder / "new"


def floats(params, config):
    plain = jax.tree.map(quantize.dequantize, params, is_leaf=decoder.is_leaf)
    return decoder.canonical(config, plain)


@pytest.mark.parametrize(("name", "recipe"), PAIRS, ids=IDS)
def test_written_and_read_are_equal(tmp_path, name, recipe):
    params, config, folder = written(tmp_path, name, recipe)
    again = weights.load(folder, dtype="float32").params
    before, after = floats(params, config), floats(again, config)
    for key, value in before.items():
        np.testing.assert_array_equal(np.asarray(value), np.asarray(after[key]), key)
    for ours, theirs in zip(params.layers, again.layers, strict=True):
        for a, b in (
            (ours.attention.qkv.w, theirs.attention.qkv.w),
            (ours.mlp.down.w, theirs.mlp.down.w),
        ):
            assert (a.kind, a.method) == (b.kind, b.method)
    assert weights.describe(folder)["quantize"].startswith(name)


@pytest.mark.parametrize(
    ("described", "pack", "name"),
    [
        (GPTQ, shuffled, "gptq"),
        (AWQ, packing.awq, "awq"),
        (AWQ, packing.awq, "gptq"),
        (AWQ, packing.awq, "compressed-tensors"),
    ],
)
def test_from_one_format_to_another(tmp_path, described, pack, name):
    """Also act-order, whose columns find back to their places."""
    config, canonical = packing.fresh(tmp_path / "old", described, pack, hf=HF)
    loaded = weights.load(tmp_path / "old", dtype="float32")
    hf, family, _ = weights.read_config(tmp_path / "old")
    weights.save(tmp_path / "new", loaded.params, config, family, hf, format=name)
    found = floats(weights.load(tmp_path / "new", dtype="float32").params, config)
    for key, value in canonical.items():
        np.testing.assert_array_equal(np.asarray(found[key]), value, key)


@pytest.mark.parametrize(("name", "recipe"), PAIRS[5:], ids=IDS[5:])
def test_compressed_tensors_reads_what_is_written(tmp_path, name, recipe):
    params, config, folder = written(tmp_path, name, recipe)
    described = transformers.AutoConfig.from_pretrained(folder).quantization_config
    group = dict(described["config_groups"]["group_0"])
    scheme = QuantizationScheme(**group)
    compressor = BaseCompressor.get_value_from_registry(described["format"])
    tensors = load_file(folder / "model.safetensors")
    stem = "model.layers.1.mlp.down_proj."
    own = {key.removeprefix(stem): x for key, x in tensors.items() if key.startswith(stem)}
    found = compressor.decompress(own, scheme)["weight"].float().numpy()
    wanted = np.asarray(floats(params, config)["layers.1.mlp.down.w"])
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize("recipe", [Recipe("int4"), Recipe("int8"), Recipe("fp8")], ids=str)
def test_transformers_loads_what_is_written(tmp_path, recipe):
    params, config, folder = written(tmp_path, "compressed-tensors", recipe)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = np.random.default_rng().integers(0, config.vocab_size, (2, 40))
    with torch.no_grad():
        wanted = theirs.eval()(torch.from_numpy(tokens)).logits.numpy()
    batch = ragged.rectangle(jnp.asarray(tokens), jnp.full(2, 40), jnp.zeros(2, jnp.int32))
    params = weights.load(folder, dtype="float32").params
    hidden, _ = decoder.forward(params, config, batch)
    got = np.asarray(decoder.unembed(params, config, hidden)).reshape(wanted.shape)
    assert np.abs(got - wanted).max() <= 1e-4 * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("name", "method", "words"),
    [
        ("gptq", None, "quantized"),
        ("awq", "int8", "int4"),
        ("gptq", "fp8", "int8"),
        ("compressed-tensors", "llm_int8", "Orbax"),
        ("gguf", "int4", "gptq"),
    ],
)
def test_what_a_format_cannot_hold(tmp_path, name, method, words):
    family, config, _ = checkpoints.fresh(tmp_path / "plain", intermediate_size=128)
    params = weights.load(tmp_path / "plain", dtype="float32", quantize=method).params
    with pytest.raises(ValueError, match=words):
        weights.save(tmp_path / "new", params, config, family, HF, format=name)
    assert not (tmp_path / "new").exists()
