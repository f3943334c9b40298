"""OLMo 2 (OLMo Team 2024): norms after the sublayers, and over all heads' q and k together."""

from collections.abc import Mapping

from jaxinfer.config import ModelConfig
from jaxinfer.models import hf_config
from jaxinfer.models.family import Family
from jaxinfer.models.hf_tensors import decoder_tensors

DEFAULTS = {
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "attention_bias": False,
}


def read(hf: Mapping) -> ModelConfig:
    """config.json of an Olmo2ForCausalLM."""
    hf = hf_config.with_defaults(hf, DEFAULTS)
    sizes = hf_config.sizes(hf)
    bias = hf_config.flag(hf, "attention_bias")
    return ModelConfig(
        family="olmo2",
        **sizes,
        layers=hf_config.same_layers(hf, hf_config.rope(hf, sizes["head_dim"])),
        norm_eps=hf_config.number(hf, "rms_norm_eps"),
        norm_style="post",
        qk_norm="full",
        activation=hf_config.activation(hf, "hidden_act"),
        qkv_bias=bias,
        out_bias=bias,
    )


OLMO2 = Family("olmo2", ("Olmo2ForCausalLM",), read, decoder_tensors)
