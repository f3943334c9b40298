"""Gemma 1 (Gemma Team 2024): wide heads, scaled embeddings, norms stored as scale - 1."""

from collections.abc import Mapping
from typing import Any

from jaxinfer.config import ModelConfig
from jaxinfer.models import hf_config
from jaxinfer.models.family import Family
from jaxinfer.models.hf_tensors import decoder_tensors

DEFAULTS = {
    "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "num_key_value_heads": 16,
    "head_dim": 256,
    "attention_bias": False,
}


def read(hf: Mapping) -> ModelConfig:
    """config.json of a GemmaForCausalLM."""
    hf = hf_config.with_defaults(hf, DEFAULTS)
    if hf["hidden_act"] == "gelu":  # what the first files say where the tanh form is meant
        hf["hidden_act"] = "gelu_pytorch_tanh"
    sizes = hf_config.sizes(hf)
    return ModelConfig(
        family="gemma",
        **sizes,
        **gemma_fields(hf),
        layers=hf_config.same_layers(hf, hf_config.rope(hf, sizes["head_dim"])),
        activation=hf_config.activation(hf, "hidden_act"),
    )


def gemma_fields(hf: Mapping) -> dict[str, Any]:
    """What all Gemmas share."""
    hf_config.only(hf, "use_bidirectional_attention", False)
    bias = hf_config.flag(hf, "attention_bias")
    return dict(
        norm_eps=hf_config.number(hf, "rms_norm_eps"),
        norm_offset=1.0,
        embed_scale=hf_config.integer(hf, "hidden_size") ** 0.5,
        qkv_bias=bias,
        out_bias=bias,
    )


GEMMA = Family("gemma", ("GemmaForCausalLM",), read, decoder_tensors)
