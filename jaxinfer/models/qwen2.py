"""Qwen2 and Qwen2.5 (Yang et al. 2024): biases on q, k and v, windows in late layers."""

from collections.abc import Mapping

from jaxinfer.config import LayerConfig, ModelConfig
from jaxinfer.models import hf_config
from jaxinfer.models.family import Family
from jaxinfer.models.hf_tensors import decoder_tensors

DEFAULTS = {
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "num_key_value_heads": 32,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}


def read(hf: Mapping) -> ModelConfig:
    """config.json of a Qwen2ForCausalLM."""
    hf = hf_config.with_defaults(hf, DEFAULTS)
    sizes = hf_config.sizes(hf)
    return ModelConfig(
        family="qwen2",
        **sizes,
        layers=qwen_layers(hf, sizes["head_dim"]),
        norm_eps=hf_config.number(hf, "rms_norm_eps"),
        activation=hf_config.activation(hf, "hidden_act"),
        qkv_bias=True,
    )


def qwen_layers(hf: Mapping, head_dim: int) -> tuple[LayerConfig, ...]:
    """Layers from max_window_layers on see a window, where windows are used at all."""
    rope = hf_config.rope(hf, head_dim)
    if not hf_config.flag(hf, "use_sliding_window"):
        return hf_config.same_layers(hf, rope)
    first = hf_config.whole_number(hf, "max_window_layers")
    windowed = hf.get("sliding_window") is not None
    return hf_config.mixed_layers(hf, lambda i: windowed and i >= first, lambda i, slides: rope)


QWEN2 = Family("qwen2", ("Qwen2ForCausalLM",), read, decoder_tensors)
