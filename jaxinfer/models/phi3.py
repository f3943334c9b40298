"""Phi-3 and Phi-4-mini (Abdin et al. 2024): fused tensors, partial rotary embedding, longrope."""

from collections.abc import Mapping

from jaxinfer.config import ModelConfig
from jaxinfer.models import hf_config
from jaxinfer.models.family import Family, Source
from jaxinfer.models.hf_tensors import decoder_tensors

DEFAULTS = {
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}


def read(hf: Mapping) -> ModelConfig:
    """config.json of a Phi3ForCausalLM."""
    hf = hf_config.with_defaults(hf, DEFAULTS)
    sizes = hf_config.sizes(hf)
    rope = hf_config.rope(hf, sizes["head_dim"], partial=True)
    if rope.scaling not in ("none", "longrope"):
        raise ValueError(
            f"config.json of a phi3 model needs rope_type longrope, got {rope.scaling!r}"
        )
    window = hf_config.optional(hf_config.integer, hf, "sliding_window")
    return ModelConfig(
        family="phi3",
        **sizes,
        layers=hf_config.same_layers(hf, rope, window),
        norm_eps=hf_config.number(hf, "rms_norm_eps"),
        activation=hf_config.activation(hf, "hidden_act"),
    )


def tensors(config: ModelConfig) -> dict[str, Source]:
    """Llama's names, but q, k, v are rows of one tensor, and so are gate and up."""
    found = decoder_tensors(config)
    N, K, H, F = config.num_heads, config.num_kv_heads, config.head_dim, config.d_ff
    rows = (N + 2 * K) * H
    for i in range(len(config.layers)):
        ours, theirs = f"layers.{i}", f"model.layers.{i}"
        for part, first in (("q", 0), ("k", N * H), ("v", (N + K) * H)):
            name = f"{theirs}.self_attn.qkv_proj.weight"
            found[f"{ours}.attention.{part}.w"] = Source(name, first, rows)
        for part, first in (("gate", 0), ("up", F)):
            name = f"{theirs}.mlp.gate_up_proj.weight"
            found[f"{ours}.mlp.{part}.w"] = Source(name, first, 2 * F)
    return found


PHI3 = Family("phi3", ("Phi3ForCausalLM",), read, tensors)
