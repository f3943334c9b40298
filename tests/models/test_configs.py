"""The config.json of real checkpoints, old layout and new, reads into the model that transformers
builds from it.
"""

import copy
import json
import math

import pytest
import torch
import transformers

from jaxinfer.models import decoder, registry
from tests.models.configs import REAL
from tests.models.small_configs import SMALL


def theirs(hf: dict):
    """The transformers model that a config.json describes, without memory for its parameters."""
    hf = copy.deepcopy(hf)
    settings = {
        k: v
        for k, v in hf.items()
        if k not in ("model_type", "architectures", "transformers_version")
    }
    config = transformers.AutoConfig.for_model(hf["model_type"], **settings)
    if hf["model_type"] == "gemma3":
        config = config.text_config
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


def windows_and_thetas(config):
    return [
        (layer.window, None if layer.rope is None else layer.rope.theta) for layer in config.layers
    ]


@pytest.mark.parametrize("name", REAL)
def test_real_checkpoint(name):
    hf, parameters = REAL[name]
    family = registry.family_of(hf)
    config = family.read(hf)
    model = theirs(hf)
    shapes = decoder.canonical_shapes(config)
    assert set(family.tensors(config)) == set(shapes)
    found = sum(math.prod(shape) for shape in shapes.values())
    assert found == sum(p.numel() for p in model.parameters())
    assert found == parameters
    saved = json.loads(model.config.to_json_string()) | {"architectures": [type(model).__name__]}
    again = registry.family_of(saved).read(saved)
    assert again == config, "transformers 5 writes the same config differently"
    assert config.max_position == model.config.max_position_embeddings
    assert config.head_dim == getattr(model.config, "head_dim", config.d_model // config.num_heads)


EXPECTED = {  # windows and rope bases of the layers
    "Llama-3.1-8B": [(None, 5e5)] * 32,
    "Mistral-7B-v0.1": [(4096, 1e4)] * 32,
    "Mistral-7B-v0.3": [(None, 1e6)] * 32,
    "Qwen2.5-7B": [(None, 1e6)] * 28,
    "gemma-2-9b": [(4096, 1e4), (None, 1e4)] * 21,
    "gemma-3-1b": ([(512, 1e4)] * 5 + [(None, 1e6)]) * 4 + [(512, 1e4)] * 2,
    "gemma-3-4b": ([(1024, 1e4)] * 5 + [(None, 1e6)]) * 5 + [(1024, 1e4)] * 4,
    "Phi-3-mini-4k": [(2047, 1e4)] * 32,
    "SmolLM3-3B": [(None, 5e6), (None, 5e6), (None, 5e6), (None, None)] * 9,
    "starcoder2-3b": [(4096, 999999.4420358813)] * 30,
    "gpt2": [(None, None)] * 12,
}


@pytest.mark.parametrize("name", EXPECTED)
def test_layers_of_real_checkpoint(name):
    hf, _ = REAL[name]
    assert windows_and_thetas(registry.family_of(hf).read(hf)) == EXPECTED[name]


def test_details_of_real_checkpoints():
    configs = {name: registry.family_of(hf).read(hf) for name, (hf, _) in REAL.items()}
    rope = configs["Llama-3.2-1B"].layers[0].rope
    assert (rope.scaling, rope.factor, rope.original_max_position) == ("llama3", 32.0, 8192)
    assert configs["Llama-3.2-1B"].tied
    assert not configs["Llama-2-7b"].tied
    assert configs["gemma-2b"].activation == "gelu_tanh"
    assert configs["gemma-2b"].tied
    assert configs["gemma-3-4b"].layers[5].rope.factor == 8.0
    assert configs["gemma-3-4b"].layers[4].rope.scaling == "none"
    rope = configs["Phi-4-mini"].layers[0].rope
    assert (rope.scaling, rope.rotary_dim, rope.original_max_position) == ("longrope", 96, 4096)
    assert rope.attention_factor == pytest.approx(math.sqrt(1 + math.log(32) / math.log(4096)))
    granite = configs["granite-3.1-8b"]
    assert (
        granite.embed_scale,
        granite.logits_scale,
        granite.residual_scale,
        granite.attention_scale,
    ) == (
        12.0,
        1 / 16,
        0.22,
        0.0078125,
    )
    assert configs["gemma-2-9b"].attention_softcap == 50.0
    assert configs["gemma-2-9b"].final_softcap == 30.0
    assert configs["gpt2"].d_ff == 4 * 768


def older(hf: dict) -> dict:
    """The same settings as transformers 4 wrote them."""
    hf = copy.deepcopy(hf)
    parameters = hf.pop("rope_parameters", None)
    hf.pop("layer_types", None)
    if hf["model_type"] == "gemma3_text":
        hf |= {
            "rope_theta": parameters["full_attention"].pop("rope_theta"),
            "sliding_window_pattern": 3,
        }
        hf["rope_local_base_freq"] = parameters["sliding_attention"]["rope_theta"]
        hf["rope_scaling"] = parameters["full_attention"]
    elif parameters is not None:
        hf["rope_theta"] = parameters.pop("rope_theta")
        if "partial_rotary_factor" in parameters:
            hf["partial_rotary_factor"] = parameters.pop("partial_rotary_factor")
        parameters["type"] = parameters.pop("rope_type")
        hf["rope_scaling"] = None if parameters["type"] == "default" else parameters
    return hf


@pytest.mark.parametrize("name", SMALL)
def test_both_layouts_read_the_same(name):
    hf = SMALL[name]
    family = registry.family_of(hf)
    assert family.read(older(hf)) == family.read(hf)


OPTIONAL = [
    "activation_function",
    "attention_bias",
    "attention_multiplier",
    "attn_logit_softcapping",
    "embedding_multiplier",
    "final_logit_softcapping",
    "hidden_act",
    "hidden_activation",
    "layer_norm_epsilon",
    "logits_scaling",
    "max_position_embeddings",
    "max_window_layers",
    "mlp_bias",
    "n_inner",
    "n_positions",
    "no_rope_layer_interval",
    "no_rope_layers",
    "norm_epsilon",
    "original_max_position_embeddings",
    "query_pre_attn_scalar",
    "residual_multiplier",
    "rms_norm_eps",
    "rope_parameters",
    "sliding_window",
    "tie_word_embeddings",
    "use_bias",
    "use_sliding_window",
]


@pytest.mark.parametrize("name", SMALL)
def test_what_is_missing_is_what_transformers_assumes(name):
    """Without an optional key, ours reads the same as from the full config that transformers makes
    of the rest.
    """
    family = registry.family_of(SMALL[name])
    present = [key for key in OPTIONAL if key in SMALL[name]]
    assert present
    for key in present:
        hf = {k: v for k, v in copy.deepcopy(SMALL[name]).items() if k not in (key, "layer_types")}
        found = family.read(hf)
        settings = {
            k: v for k, v in copy.deepcopy(hf).items() if k not in ("model_type", "architectures")
        }
        made = transformers.AutoConfig.for_model(hf["model_type"], **settings)
        saved = json.loads(made.to_json_string()) | {"architectures": hf["architectures"]}
        assert saved.get(key) is not None or key in ("n_inner", "sliding_window"), key
        assert family.read(saved) == found, key


def changed(name, **changes):
    return {**copy.deepcopy(SMALL[name]), **changes}


@pytest.mark.parametrize(
    ("hf", "message"),
    [
        (changed("llama3", hidden_size="84"), "hidden_size"),
        (changed("llama3", hidden_size=-84), "hidden_size"),
        (changed("llama3", num_hidden_layers=2.0), "num_hidden_layers"),
        (changed("llama3", vocab_size=True), "vocab_size"),
        (changed("llama3", rms_norm_eps="small"), "rms_norm_eps"),
        (changed("llama3", attention_bias=1), "attention_bias"),
        (changed("llama3", hidden_act="xielu"), "hidden_act"),
        (changed("llama3", hidden_act=None), "hidden_act"),
        (changed("llama3", num_key_value_heads=4), "num_kv_heads"),
        (changed("llama3", head_dim=None, hidden_size=90), "head_dim"),
        (changed("llama3", tie_word_embeddings=None), "tie_word_embeddings"),
        (changed("llama3", quantization_config={"quant_method": "gptq"}), "quantization_config"),
        (changed("llama3", layer_types=["sliding_attention"] * 2), "layer_types"),
        (changed("llama3", rope_parameters=[1]), "rope_parameters"),
        (changed("llama3", rope_parameters={"rope_type": "llama4"}), "rope_type"),
        (changed("qwen2", layer_types=["full_attention"] * 4), "layer_types"),
        (changed("qwen2", layer_types=["linear_attention"] * 3), "layer_types"),
        (changed("qwen2", sliding_window=None), "sliding_window"),
        (changed("qwen2", use_sliding_window=False), "layer_types"),
        (changed("gemma", use_bidirectional_attention=True), "use_bidirectional_attention"),
        (
            changed("gemma3", rope_parameters={"rope_type": "default", "rope_theta": 1e4}),
            "by layer type",
        ),
        (changed("gemma3", text_config=3), "text_config"),
        (changed("phi3-long", rope_parameters={"rope_type": "linear", "factor": 2.0}), "longrope"),
        (changed("smollm3", no_rope_layers=[1, 0]), "no_rope_layers"),
        (changed("smollm3", no_rope_layers=[1, 0, 2, 0]), "no_rope_layers"),
        (changed("granite", logits_scaling=0), "logits_scaling"),
        (changed("starcoder2", norm_type="rms_norm"), "norm_type"),
        (changed("gpt2", scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx"),
        (changed("gpt2", reorder_and_upcast_attn=True), "reorder_and_upcast_attn"),
        (changed("gpt2", add_cross_attention=True), "add_cross_attention"),
        (changed("gpt2", n_head=5), "n_head"),
    ],
)
def test_refused(hf, message):
    with pytest.raises(ValueError, match=message):
        registry.family_of(hf).read(hf)


@pytest.mark.parametrize(
    "key", ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"]
)
def test_missing_key_is_named(key):
    hf = {k: v for k, v in SMALL["llama3"].items() if k != key}
    with pytest.raises(ValueError, match=key):
        registry.family_of(hf).read(hf)


def test_unsupported_architecture_is_named():
    with pytest.raises(ValueError, match="MambaForCausalLM") as error:
        registry.family_of({"architectures": ["MambaForCausalLM"]})
    for family in registry.FAMILIES:
        for architecture in family.architectures:
            assert architecture in str(error.value)


@pytest.mark.parametrize("names", [None, [], "LlamaForCausalLM", [3]])
def test_architectures_missing(names):
    with pytest.raises(ValueError, match="architectures"):
        registry.family_of({"architectures": names})


def test_by_name():
    for family in registry.FAMILIES:
        assert registry.by_name(family.name) is family
    with pytest.raises(ValueError, match="mamba"):
        registry.by_name("mamba")
