"""Gemma 2 (Gemma Team 2024): every other layer local, norms on both sides, soft caps."""

from collections.abc import Mapping

from jaxinfer.config import ModelConfig
from jaxinfer.models import hf_config
from jaxinfer.models.family import Family
from jaxinfer.models.gemma import gemma_fields
from jaxinfer.models.hf_tensors import decoder_tensors

DEFAULTS = {
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "attention_bias": False,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
}


def read(hf: Mapping) -> ModelConfig:
    """config.json of a Gemma2ForCausalLM."""
    hf = hf_config.with_defaults(hf, DEFAULTS)
    sizes = hf_config.sizes(hf)
    rope = hf_config.rope(hf, sizes["head_dim"])
    return ModelConfig(
        family="gemma2",
        **sizes,
        **gemma_fields(hf),
        layers=hf_config.mixed_layers(hf, lambda i: i % 2 == 0, lambda i, slides: rope),
        norm_style="sandwich",
        activation=hf_config.activation(hf, "hidden_activation"),
        attention_scale=hf_config.number(hf, "query_pre_attn_scalar") ** -0.5,
        attention_softcap=hf_config.optional(hf_config.number, hf, "attn_logit_softcapping"),
        final_softcap=hf_config.optional(hf_config.number, hf, "final_logit_softcapping"),
    )


GEMMA2 = Family("gemma2", ("Gemma2ForCausalLM",), read, decoder_tensors)
