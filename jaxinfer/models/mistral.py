"""Mistral 7B and Nemo (Jiang et al. 2023): Llama with a sliding window in every layer, or none."""

from collections.abc import Mapping

from jaxinfer.config import ModelConfig
from jaxinfer.models import hf_config
from jaxinfer.models.family import Family
from jaxinfer.models.hf_tensors import decoder_tensors

DEFAULTS = {
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "num_key_value_heads": 8,
    "sliding_window": 4096,
}


def read(hf: Mapping) -> ModelConfig:
    """config.json of a MistralForCausalLM."""
    hf = hf_config.with_defaults(hf, DEFAULTS)
    sizes = hf_config.sizes(hf)
    window = hf_config.optional(hf_config.integer, hf, "sliding_window")
    return ModelConfig(
        family="mistral",
        **sizes,
        layers=hf_config.same_layers(hf, hf_config.rope(hf, sizes["head_dim"]), window),
        norm_eps=hf_config.number(hf, "rms_norm_eps"),
        activation=hf_config.activation(hf, "hidden_act"),
    )


MISTRAL = Family("mistral", ("MistralForCausalLM",), read, decoder_tensors)
