"""Llama 2, 3, 3.1 and 3.2 (Touvron et al. 2023; Dubey et al. 2024), and what is built alike."""

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
}


def read(hf: Mapping) -> ModelConfig:
    """config.json of a LlamaForCausalLM."""
    hf = hf_config.with_defaults(hf, DEFAULTS)
    sizes = hf_config.sizes(hf)
    return ModelConfig(
        family="llama",
        **sizes,
        layers=hf_config.same_layers(hf, hf_config.rope(hf, sizes["head_dim"])),
        norm_eps=hf_config.number(hf, "rms_norm_eps"),
        activation=hf_config.activation(hf, "hidden_act"),
        qkv_bias=hf_config.flag(hf, "attention_bias"),
        out_bias=hf_config.flag(hf, "attention_bias"),
        mlp_bias=hf_config.flag(hf, "mlp_bias"),
    )


LLAMA = Family("llama", ("LlamaForCausalLM",), read, decoder_tensors)
