"""Qwen3, dense (Yang et al. 2025): an RMSNorm on each head's q and k."""

from collections.abc import Mapping

from jaxinfer.config import ModelConfig
from jaxinfer.models import hf_config
from jaxinfer.models.family import Family
from jaxinfer.models.hf_tensors import decoder_tensors
from jaxinfer.models.qwen2 import qwen_layers

DEFAULTS = {
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "num_key_value_heads": 32,
    "head_dim": 128,
    "attention_bias": False,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}


def read(hf: Mapping) -> ModelConfig:
    """config.json of a Qwen3ForCausalLM."""
    hf = hf_config.with_defaults(hf, DEFAULTS)
    sizes = hf_config.sizes(hf)
    bias = hf_config.flag(hf, "attention_bias")
    return ModelConfig(
        family="qwen3",
        **sizes,
        layers=qwen_layers(hf, sizes["head_dim"]),
        norm_eps=hf_config.number(hf, "rms_norm_eps"),
        qk_norm="head",
        activation=hf_config.activation(hf, "hidden_act"),
        qkv_bias=bias,
        out_bias=bias,
    )


QWEN3 = Family("qwen3", ("Qwen3ForCausalLM",), read, decoder_tensors)
