"""What compressed-tensors' own compressors write."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme

from jaxinfer import quantize, weights
from jaxinfer.models import decoder
from jaxinfer.quantize import QTensor
from tests.weights import checkpoints, packing

HF = checkpoints.LLAMA | {"intermediate_size": 96}
DYNAMIC = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
FLOAT = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "token", "dynamic": True}


def integers(bits, strategy, symmetric=True, group=None):
    return {
        "num_bits": bits,
        "type": "int",
        "symmetric": symmetric,
        "strategy": strategy,
        "group_size": group,
    }


def floats(strategy, block=None, bits=8, group=None):
    return {
        "group_size": group,
        "num_bits": bits,
        "type": "float",
        "symmetric": True,
        "strategy": strategy,
        "block_structure": block,
    }


# the layout, its weights and activations -> what holds a map of 64 columns: kind, group, method
CASES = {
    "int4 group": ("pack-quantized", integers(4, "group", group=32), None, ("int4", 32, "int4")),
    "int4 zeros": (
        "pack-quantized",
        integers(4, "group", False, 16),
        None,
        ("int4", 16, "int4"),
    ),
    "int4 channel": ("pack-quantized", integers(4, "channel"), None, ("int4", 64, "int4")),
    "int8 packed": ("pack-quantized", integers(8, "channel"), None, ("int8", None, "int8")),
    "int8 packed zeros": (
        "pack-quantized",
        integers(8, "channel", False),
        None,
        ("int8", 64, "int8"),
    ),
    "w8a8": ("int-quantized", integers(8, "channel"), DYNAMIC, ("int8", None, "w8a8")),
    "w8a8 tensor": ("int-quantized", integers(8, "tensor"), DYNAMIC, ("int8", None, "w8a8")),
    "w8 zeros": (
        "int-quantized",
        integers(8, "channel", False),
        DYNAMIC,
        ("int8", 64, "int8"),
    ),
    "fp8 channel": ("float-quantized", floats("channel"), FLOAT, ("fp8", None, "fp8")),
    "fp8 tensor": ("float-quantized", floats("tensor"), FLOAT, ("fp8", None, "fp8")),
    "mxfp4": (
        "mxfp4-pack-quantized",
        floats("group", bits=4, group=32),
        None,
        ("fp8", 32, "fp8"),
    ),
    "nvfp4": (
        "nvfp4-pack-quantized",
        floats("tensor_group", bits=4, group=16),
        None,
        ("fp8", 16, "fp8"),
    ),
    "fp8 block": ("float-quantized", floats("block", [16, 16]), FLOAT, ("fp8", 16, "fp8")),
}


def compressor_of(name, weight, dtype=torch.float32):
    """A `pack` of `packing.fresh` that uses the real compressor, and its scheme."""
    layout, args, activations, _ = CASES[name]
    scheme = QuantizationScheme(targets=["Linear"], weights=args, input_activations=activations)
    compressor = BaseCompressor.get_value_from_registry(layout)

    def pack(rng, stem, shape):
        out, columns = shape
        match args["strategy"]:
            case "group" | "tensor_group":
                held = (out, columns // args["group_size"])
            case "channel":
                held = (out, 1)
            case "block":
                held = (-(-out // 16), -(-columns // 16))
            case _:
                held = (1,)
        state = {
            "weight": torch.from_numpy(weight(rng, shape)),
            "weight_scale": torch.from_numpy(packing.scales(rng, held, np.float32)).to(dtype),
        }
        if layout == "mxfp4-pack-quantized":
            powers = 2.0 ** rng.integers(-6, -2, held)
            state["weight_scale"] = torch.from_numpy(powers.astype(np.float32))
        if layout == "nvfp4-pack-quantized":
            above = torch.tensor([512.0])
            eighths = (state["weight_scale"] * above).to(torch.float8_e4m3fn)
            state |= {"weight_scale": eighths.to(torch.float32), "weight_global_scale": above}
        if not args["symmetric"]:
            low = 1 << (args["num_bits"] - 1)
            zero = rng.integers(-low, low, held).astype(np.int8)
            state["weight_zero_point"] = torch.from_numpy(zero)
        packed = compressor.compress(state, scheme)
        whole = compressor.decompress(dict(packed), scheme)["weight"]
        tensors = {f"{stem}.{key}": _numpy(value) for key, value in packed.items()}
        return tensors, whole.to(torch.float32).numpy()

    group = scheme.model_dump(mode="json")
    config = {
        "quant_method": "compressed-tensors",
        "format": layout,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "quantization_status": "compressed",
    }
    return pack, config


def _numpy(value):
    if value.dtype == torch.float8_e4m3fn:
        return value.view(torch.uint8).numpy().view(jnp.float8_e4m3fn)
    return value.numpy()


def normal(rng, shape):
    return (rng.standard_normal(shape) / 8).astype(np.float32)


@pytest.mark.parametrize("name", CASES)
def test_numbers_are_those_of_their_compressors(tmp_path, name):
    pack, config = compressor_of(name, normal)
    model, canonical = packing.fresh(tmp_path, config, pack, hf=HF)
    params = weights.load(tmp_path, dtype="float32").params
    plain = jax.tree.map(quantize.dequantize, params, is_leaf=decoder.is_leaf)
    found = decoder.canonical(model, plain)
    for key, wanted in canonical.items():
        np.testing.assert_allclose(np.asarray(found[key]), wanted, rtol=1e-6, err_msg=key)
    held = params.layers[0].attention.qkv.w
    assert isinstance(held, QTensor)
    assert (held.kind, held.group, held.method) == CASES[name][3]
