"""Quantized checkpoints that cannot be used: one clear error that names the tensor and the file."""

import json

import ml_dtypes
import numpy as np
import pytest

from jaxinfer import weights
from jaxinfer.weights.safetensors_file import CheckpointError
from tests.weights import packing
from tests.weights.test_formats import AWQ, CASES, FP8, GPTQ, INT8, NF4

STEM = "model.layers.1.mlp.down_proj"


def poisoned(value, bad):
    value = value.copy()
    value.reshape(-1)[-1] = bad
    return value


def not_a_number(value):
    return poisoned(value.view(np.uint8), 0x7F).view(ml_dtypes.float8_e4m3fn)


# which checkpoint, its damaged tensor, what becomes of it (None: it is taken away), words of the error
DAMAGES = [
    ("gptq", "scales", None, "missing"),
    ("gptq", "qzeros", None, "missing"),
    ("gptq", "scales", lambda x: x[1:], "[7, 64]"),
    ("gptq", "scales", lambda x: x.astype(np.int16), "I16"),
    ("gptq", "scales", lambda x: poisoned(x, np.inf), "finite"),
    ("gptq", "scales", lambda x: poisoned(x, np.nan), "finite"),
    ("gptq", "qzeros", lambda x: x[:, 1:], "[7, 8]"),
    ("gptq", "qweight", lambda x: x[1:], "[14, 64]"),
    ("gptq", "g_idx", lambda x: poisoned(x, 99), "7 groups"),
    ("gptq", "g_idx", lambda x: poisoned(x, -1), "7 groups"),
    ("gptq symmetric", "qzeros", lambda x: poisoned(x, 0), "sym"),
    ("awq", "scales", None, "missing"),
    ("awq", "scales", lambda x: poisoned(x, np.nan), "finite"),
    ("awq", "qzeros", lambda x: x[1:], "[7, 8]"),
    ("fp8", "weight_scale_inv", None, "missing"),
    ("fp8", "weight_scale_inv", lambda x: x[1:], "[4, 7]"),
    ("fp8", "weight_scale_inv", lambda x: poisoned(x, np.inf), "finite"),
    ("fp8", "weight", not_a_number, "finite"),
    ("fp8 tensor", "weight_scale", None, "missing"),
    ("bitsandbytes int8", "SCB", None, "missing"),
    ("bitsandbytes int8", "SCB", lambda x: poisoned(x, np.nan), "finite"),
    ("bitsandbytes int8", "weight_format", lambda x: x + np.uint8(1), "rows"),
    ("bitsandbytes nf4", "weight.absmax", None, "missing"),
    ("bitsandbytes nf4", "weight.absmax", lambda x: x[1:], "[224]"),
    ("bitsandbytes nf4", "weight.nested_absmax", lambda x: poisoned(x, np.nan), "finite"),
    ("bitsandbytes nf4", "weight.quant_map", lambda x: poisoned(x, np.inf), "finite"),
    ("bitsandbytes nf4", "weight.quant_state.bitsandbytes__nf4", None, "missing"),
    ("bitsandbytes nf4", "weight.quant_state.bitsandbytes__nf4", lambda x: x[1:], "valid JSON"),
]


@pytest.mark.parametrize(("case", "tensor", "damage", "words"), DAMAGES)
def test_damaged_tensors(tmp_path, case, tensor, damage, words):
    config, pack = CASES[case]

    def damaged(rng, stem, shape):
        tensors, weight = pack(rng, stem, shape)
        if stem == STEM:
            found = tensors.pop(f"{stem}.{tensor}")
            if damage is not None:
                tensors[f"{stem}.{tensor}"] = np.ascontiguousarray(damage(found))
        return tensors, weight

    packing.fresh(tmp_path, config, damaged)
    with pytest.raises(CheckpointError) as raised:
        weights.load(tmp_path, dtype="float32")
    message = str(raised.value)
    assert words in message
    assert str(tmp_path / "model.safetensors") in message
    assert STEM in message


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ([], "object"),
        ({}, "quant_method"),
        ({"quant_method": "quip"}, "'quip'"),
        ({"quant_method": ["gptq"]}, "quant_method"),
        (GPTQ | {"bits": 3}, "got 3"),
        (GPTQ | {"bits": "4"}, "got '4'"),
        (GPTQ | {"group_size": 0}, "group_size"),
        (GPTQ | {"group_size": None}, "group_size"),
        (GPTQ | {"sym": "yes"}, "sym"),
        (GPTQ | {"checkpoint_format": "marlin"}, "'marlin'"),
        (GPTQ | {"dynamic": {"+:.*up.*": {"bits": 8}}}, "dynamic"),
        (AWQ | {"bits": 8}, "got 8"),
        (AWQ | {"version": "gemv"}, "'gemv'"),
        (FP8 | {"weight_block_size": [128]}, "weight_block_size"),
        (FP8 | {"fmt": "e5m2"}, "e5m2"),
        (INT8 | {"load_in_4bit": True}, "one of"),
        (NF4 | {"bnb_4bit_quant_type": "nf5"}, "nf5"),
        ({"quant_method": "compressed-tensors"}, "config_groups"),
        ({"quant_method": "compressed-tensors", "config_groups": {"a": {}}, "format": "x"}, "'x'"),
    ],
)
def test_malformed_settings(tmp_path, config, words):
    packing.fresh(tmp_path, config, packing.awq)
    with pytest.raises(CheckpointError) as raised:
        weights.load(tmp_path)
    assert words in str(raised.value)
    assert "config.json" in str(raised.value)


@pytest.mark.parametrize(
    ("config", "pack"),
    [(GPTQ | {"group_size": 24}, packing.gptq), (AWQ | {"group_size": 48}, packing.awq)],
)
def test_groups_that_do_not_fit(tmp_path, config, pack):
    packing.fresh(tmp_path, config, pack)
    with pytest.raises(CheckpointError, match=r"down_proj|q_proj"):
        weights.load(tmp_path)


def test_packed_weights_without_a_description(tmp_path):
    packing.fresh(tmp_path, *CASES["gptq"])
    path = tmp_path / "config.json"
    hf = json.loads(path.read_text())
    del hf["quantization_config"]
    path.write_text(json.dumps(hf))
    with pytest.raises(CheckpointError, match="q_proj"):
        weights.load(tmp_path)
