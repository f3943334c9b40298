"""SmolLM3 (Hugging Face 2025): Llama with no rotary embedding in every fourth layer (NoPE)."""

from collections.abc import Mapping

from jaxinfer.config import ModelConfig
from jaxinfer.models import hf_config
from jaxinfer.models.family import Family
from jaxinfer.models.hf_tensors import decoder_tensors

DEFAULTS = {
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 2_000_000.0,
    "tie_word_embeddings": True,
    "num_key_value_heads": 4,
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
    "no_rope_layer_interval": 4,
}


def read(hf: Mapping) -> ModelConfig:
    """config.json of a SmolLM3ForCausalLM."""
    hf = hf_config.with_defaults(hf, DEFAULTS)
    sizes = hf_config.sizes(hf)
    rope = hf_config.rope(hf, sizes["head_dim"])
    rotates = _rotates(hf)
    ropes = [rope if rotated else None for rotated in rotates]
    windowed = hf_config.flag(hf, "use_sliding_window") and hf.get("sliding_window") is not None
    bias = hf_config.flag(hf, "attention_bias")
    return ModelConfig(
        family="smollm3",
        **sizes,
        layers=hf_config.mixed_layers(
            hf, lambda i: windowed and not rotates[i], lambda i, slides: ropes[i]
        ),
        norm_eps=hf_config.number(hf, "rms_norm_eps"),
        activation=hf_config.activation(hf, "hidden_act"),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=hf_config.flag(hf, "mlp_bias"),
    )


def _rotates(hf: Mapping) -> list[bool]:
    """Which layers have rotary embedding: no_rope_layers, where 1 means that a layer does."""
    L, given = hf_config.integer(hf, "num_hidden_layers"), hf.get("no_rope_layers")
    if given is None:
        interval = hf_config.integer(hf, "no_rope_layer_interval")
        return [(i + 1) % interval != 0 for i in range(L)]
    if not isinstance(given, list) or len(given) < L or any(value not in (0, 1) for value in given):
        raise ValueError(
            f"config.json needs no_rope_layers to be a list of {L} (num_hidden_layers) zeros and "
            f"ones, got {given!r}"
        )
    return [value == 1 for value in given[:L]]


SMOLLM3 = Family("smollm3", ("SmolLM3ForCausalLM",), read, decoder_tensors)
