"""Gemma 3, its text half (Gemma Team 2025): 5 local layers to 1 global, a rope for each."""

from collections.abc import Mapping

from jaxinfer.config import ModelConfig
from jaxinfer.models import hf_config
from jaxinfer.models.family import Family
from jaxinfer.models.gemma import gemma_fields
from jaxinfer.models.hf_tensors import decoder_tensors

DEFAULTS = {
    "model_type": "gemma3_text",
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "sliding_window_pattern": 6,
}
THETAS = {
    "full_attention": ("rope_theta", 1_000_000.0),
    "sliding_attention": ("rope_local_base_freq", 10_000.0),
}


def read(hf: Mapping) -> ModelConfig:
    """config.json of a Gemma3ForCausalLM, or of a Gemma3ForConditionalGeneration, read as text."""
    hf_config.only(hf, "quantization_config")
    if "text_config" in hf:
        text = hf["text_config"]
        if not isinstance(text, Mapping):
            raise ValueError(f"config.json needs text_config to be an object, got {text!r}")
        hf = {"tie_word_embeddings": hf.get("tie_word_embeddings", True), **text}
    hf = hf_config.with_defaults(hf, DEFAULTS)
    sizes = hf_config.sizes(hf)
    pattern = hf_config.integer(hf, "sliding_window_pattern")
    ropes = hf_config.rope_by_layer_type(hf, sizes["head_dim"], THETAS)
    return ModelConfig(
        family="gemma3",
        **sizes,
        **gemma_fields(hf),
        layers=hf_config.mixed_layers(
            hf,
            lambda i: (i + 1) % pattern != 0,
            lambda i, slides: ropes["sliding_attention" if slides else "full_attention"],
        ),
        norm_style="sandwich",
        qk_norm="head",
        activation=hf_config.activation(hf, "hidden_activation"),
        attention_scale=hf_config.number(hf, "query_pre_attn_scalar") ** -0.5,
        attention_softcap=hf_config.optional(hf_config.number, hf, "attn_logit_softcapping"),
        final_softcap=hf_config.optional(hf_config.number, hf, "final_logit_softcapping"),
    )


GEMMA3 = Family(
    "gemma3",
    ("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
    read,
    decoder_tensors,
    foreign=("vision_tower.", "multi_modal_projector."),
)
