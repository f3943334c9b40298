"""Quantized checkpoints of other projects: read as they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from jaxinfer import quantize, ragged, weights
from jaxinfer.models import decoder
from jaxinfer.quantize import QTensor
from jaxinfer.weights import orbax, relayout
from jaxinfer.weights.formats import mx
from tests.weights import checkpoints, packing

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 16, "sym": False, "desc_act": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 16, "zero_point": True, "version": "gemm"}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [16, 16]}
INT8 = {"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False}
NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


def gptq(**settings):
    return lambda rng, stem, shape: packing.gptq(rng, stem, shape, **settings)


def shuffled(rng, stem, shape, **settings):
    """GPTQ with act-order: one order for maps of the same input, as their Hessian is the same."""
    seed = sum(stem.rpartition(".")[0].encode()) + shape[1]
    index = np.random.default_rng(seed).permutation(np.arange(shape[1]) // packing.GROUP)
    return packing.gptq(rng, stem, shape, index=index, **settings)


def unlike(rng, stem, shape):
    """Act-order in which every map has an order of its own."""
    index = rng.permutation(np.arange(shape[1]) // packing.GROUP)
    return packing.gptq(rng, stem, shape, index=index)


def floats(params, config):
    """Canonical tensors of parameters, whatever holds them."""
    plain = jax.tree.map(quantize.dequantize, params, is_leaf=decoder.is_leaf)
    return decoder.canonical(config, plain)


CASES = {
    "gptq": (GPTQ, gptq()),
    "gptq_v2": (GPTQ | {"checkpoint_format": "gptq_v2"}, gptq(version="gptq_v2")),
    "gptq symmetric": (GPTQ | {"sym": True}, gptq(symmetric=True)),
    "gptq 8 bits": (GPTQ | {"bits": 8}, gptq(bits=8)),
    "gptq 8 bits a row": (
        GPTQ | {"bits": 8, "group_size": -1, "sym": True},
        gptq(bits=8, group=-1, symmetric=True),
    ),
    "gptq act-order": (GPTQ | {"desc_act": True}, shuffled),
    "gptq unlike orders": (GPTQ | {"desc_act": True}, unlike),
    "awq": (AWQ, packing.awq),
    "fp8": (FP8, packing.fp8),
    "fp8 ragged blocks": (
        FP8 | {"weight_block_size": [24, 48]},
        lambda rng, stem, shape: packing.fp8(rng, stem, shape, (24, 48)),
    ),
    "fp8 tensor": (
        {"quant_method": "fp8", "activation_scheme": "static"},
        lambda rng, stem, shape: packing.fp8(rng, stem, shape, None, "weight_scale"),
    ),
    "bitsandbytes int8": (INT8, packing.int8),
    "bitsandbytes nf4": (NF4, packing.four_bit),
    "bitsandbytes nf4 plain": (
        NF4,
        lambda rng, stem, shape: packing.four_bit(rng, stem, shape, double=False),
    ),
}
# what holds the fused qkv matrix: kind, group, zero points, order; None: floats
HELD = {
    "gptq": ("int4", 16, True, False),
    "gptq_v2": ("int4", 16, True, False),
    "gptq symmetric": ("int4", 16, False, False),
    "gptq 8 bits": ("int8", 16, True, False),
    "gptq 8 bits a row": ("int8", None, False, False),
    "gptq act-order": ("int4", 16, True, True),
    "gptq unlike orders": None,
    "awq": ("int4", 16, True, False),
    "fp8": ("fp8", 16, False, False),
    "fp8 ragged blocks": ("fp8", 16, False, False),
    "fp8 tensor": ("fp8", None, False, False),
    "bitsandbytes int8": ("int8", None, False, False),
    "bitsandbytes nf4": None,
    "bitsandbytes nf4 plain": None,
}


@pytest.mark.parametrize("name", CASES)
def test_numbers_are_those_of_the_files(tmp_path, name):
    config, pack = CASES[name]
    model, canonical = packing.fresh(tmp_path, config, pack, shards=2)
    loaded = weights.load(tmp_path, dtype="float32")
    found = floats(loaded.params, model)
    for key, wanted in canonical.items():
        np.testing.assert_array_equal(np.asarray(found[key]), wanted, key)
    assert loaded.config == model
    held = loaded.params.layers[0].attention.qkv.w
    if HELD[name] is None:
        assert not isinstance(held, QTensor)
        return
    described = held.kind, held.group, held.zero is not None, held.order is not None
    assert described == HELD[name]
    kept = jnp.float16 if held.kind == "int4" else jnp.float32
    assert held.scale.dtype == kept


@pytest.mark.parametrize("name", ["gptq", "gptq act-order", "awq", "fp8", "bitsandbytes nf4"])
def test_logits_are_those_of_transformers(tmp_path, name):
    """As transformers computes them with the weights that the numbers stand for."""
    config, pack = CASES[name]
    model, canonical = packing.fresh(tmp_path / "packed", config, pack)
    family, _, _ = checkpoints.fresh(tmp_path / "plain")
    files = checkpoints.file_tensors(family, model, canonical)
    checkpoints.write(tmp_path / "plain", checkpoints.LLAMA, files)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "plain").eval()
    tokens = np.random.default_rng().integers(0, model.vocab_size, (2, 40))
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(tokens)).logits.numpy()
    params = weights.load(tmp_path / "packed", dtype="float32").params
    batch = ragged.rectangle(jnp.asarray(tokens), jnp.full(2, 40), jnp.zeros(2, jnp.int32))
    hidden, _ = decoder.forward(params, model, batch)
    got = np.asarray(decoder.unembed(params, model, hidden)).reshape(wanted.shape)
    assert np.abs(got - wanted).max() <= 1e-4 * np.abs(wanted).max()


def test_four_bit_floats_are_those_of_transformers(rng):
    """As it reads the blocks and scales of gpt-oss: [experts, out, groups, 16] and [.., groups]."""
    blocks = rng.integers(0, 256, (2, 8, 3, 16)).astype(np.uint8)
    exponents = rng.integers(90, 160, (2, 8, 3)).astype(np.uint8)
    tensors = torch.from_numpy(blocks), torch.from_numpy(exponents)
    theirs = convert_moe_packed_tensors(*tensors, dtype=torch.float32).numpy()
    ours = mx.levels(blocks).astype(np.float32) * mx.powers(exponents)[..., None]
    np.testing.assert_array_equal(ours.reshape(2, 8, 96), theirs.swapaxes(1, 2))


def test_bfloat16_models_keep_scales_as_kernels_take_them(tmp_path):
    _, canonical = packing.fresh(tmp_path, AWQ, packing.awq)
    params = weights.load(tmp_path, dtype="bfloat16").params
    held = params.layers[0].mlp.down.w
    assert held.scale.dtype == held.zero.dtype == jnp.bfloat16
    wanted = canonical["layers.0.mlp.down.w"]
    error = np.abs(np.asarray(quantize.dequantize(held)) - wanted)
    assert (error <= 2.0**-8 * np.abs(wanted)).all()


def test_int8_weights_meet_activations_as_asked(tmp_path):
    packing.fresh(tmp_path, INT8, packing.int8)
    plain = weights.load(tmp_path, dtype="float32")
    for method in ("int8", "w8a8"):
        loaded = weights.load(tmp_path, dtype="float32", quantize=method)
        held, same = (x.params.layers[1].attention.out.w for x in (loaded, plain))
        assert held.method == method
        assert np.array_equal(held.values, same.values)


def test_floats_may_be_rounded_anew(tmp_path):
    model, canonical = packing.fresh(tmp_path, NF4, packing.four_bit)
    params = weights.load(tmp_path, dtype="float32", quantize="int8").params
    again = jax.tree.map(
        lambda w: np.asarray(quantize.dequantize(w)), params, is_leaf=decoder.is_leaf
    )
    found = decoder.canonical(model, again)["layers.0.mlp.down.w"]
    wanted = canonical["layers.0.mlp.down.w"]
    step = np.abs(wanted).max(axis=1, keepdims=True) / 127
    assert (np.abs(found - wanted) <= step * 0.51).all()


@pytest.mark.parametrize("name", ["gptq act-order", "gptq 8 bits", "awq", "fp8"])
def test_orbax_keeps_them(tmp_path, name):
    config, pack = CASES[name]
    packing.fresh(tmp_path / "packed", config, pack)
    loaded = weights.load(tmp_path / "packed", dtype="float32")
    orbax.save(tmp_path / "orbax", loaded.params, loaded.config)
    again = weights.load(tmp_path / "orbax")
    assert checkpoints.equal(again.params, loaded.params)
    again = relaid(again.params, loaded.config)
    assert checkpoints.equal(floats(again, loaded.config), floats(loaded.params, loaded.config))


def relaid(params, config):
    """Laid out for two shards, as restoring onto two devices does."""
    old, new = decoder.leaves(config, 1), decoder.leaves(config, 2)
    values, _ = jax.tree.flatten(params, is_leaf=decoder.is_leaf)
    layout = decoder.layout(config, 2)
    _, treedef = jax.tree.flatten(layout, is_leaf=decoder.is_leaf)
    moved = [
        relayout.relaid(value, before, after, None, None)
        for value, before, after in zip(values, old, new, strict=True)
    ]
    return treedef.unflatten(moved)


def test_info_names_the_format(tmp_path):
    packing.fresh(tmp_path, GPTQ, gptq())
    found = weights.describe(tmp_path, dtype="bfloat16")
    assert found["quantize"] == "gptq 4 bits, group 16"
    assert found["stored_bytes"].keys() == {"F16", "I32"}
    loaded = weights.load(tmp_path, dtype="bfloat16").params
    assert found["bytes"] == sum(x.nbytes for x in jax.tree.leaves(loaded))
