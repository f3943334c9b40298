"""Granite 3 (IBM 2024): Llama with multipliers on embeddings, scores, residuals and logits."""

from collections.abc import Mapping

from jaxinfer.config import ModelConfig
from jaxinfer.models import hf_config
from jaxinfer.models.family import Family
from jaxinfer.models.hf_tensors import decoder_tensors

DEFAULTS = {
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "embedding_multiplier": 1.0,
    "logits_scaling": 1.0,
    "residual_multiplier": 1.0,
    "attention_multiplier": 1.0,
}


def read(hf: Mapping) -> ModelConfig:
    """config.json of a GraniteForCausalLM. logits_scaling divides, the others multiply."""
    hf = hf_config.with_defaults(hf, DEFAULTS)
    sizes = hf_config.sizes(hf)
    bias = hf_config.flag(hf, "attention_bias")
    return ModelConfig(
        family="granite",
        **sizes,
        layers=hf_config.same_layers(hf, hf_config.rope(hf, sizes["head_dim"])),
        norm_eps=hf_config.number(hf, "rms_norm_eps"),
        activation=hf_config.activation(hf, "hidden_act"),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=hf_config.flag(hf, "mlp_bias"),
        embed_scale=hf_config.number(hf, "embedding_multiplier"),
        residual_scale=hf_config.number(hf, "residual_multiplier"),
        attention_scale=hf_config.number(hf, "attention_multiplier"),
        logits_scale=1.0 / hf_config.number(hf, "logits_scaling"),
    )


GRANITE = Family("granite", ("GraniteForCausalLM",), read, decoder_tensors)
