"""GPT-2 (Radford et al.

2019): learned positions, fused q, k, v, and matrices stored `[in, out]`.
"""

from collections.abc import Mapping

from jaxinfer.config import ModelConfig
from jaxinfer.models import hf_config
from jaxinfer.models.family import Family, Source
from jaxinfer.models.hf_tensors import norm

DEFAULTS = {
    "n_positions": 1024,
    "n_inner": None,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "tie_word_embeddings": True,
}


def read(hf: Mapping) -> ModelConfig:
    """config.json of a GPT2LMHeadModel."""
    hf = hf_config.with_defaults(hf, DEFAULTS)
    for key in (
        "scale_attn_by_inverse_layer_idx",
        "reorder_and_upcast_attn",
        "add_cross_attention",
    ):
        hf_config.only(hf, key, False)
    hf_config.only(hf, "quantization_config")
    d_model, heads = hf_config.integer(hf, "n_embd"), hf_config.integer(hf, "n_head")
    if d_model % heads:
        raise ValueError(
            f"config.json needs n_embd to be a multiple of n_head, got {d_model} and {heads}"
        )
    positions = hf_config.integer(hf, "n_positions")
    return ModelConfig(
        family="gpt2",
        vocab_size=hf_config.integer(hf, "vocab_size"),
        d_model=d_model,
        d_ff=hf_config.optional(hf_config.integer, hf, "n_inner") or 4 * d_model,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=d_model // heads,
        layers=hf_config.same_layers(
            {"num_hidden_layers": hf_config.integer(hf, "n_layer")}, rope=None
        ),
        max_position=positions,
        learned_positions=positions,
        norm="layer",
        norm_eps=hf_config.number(hf, "layer_norm_epsilon"),
        activation=hf_config.activation(hf, "activation_function"),
        gated=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        tied=hf_config.flag(hf, "tie_word_embeddings"),
        attention_scale=None if hf_config.flag(hf, "scale_attn_weights") else 1.0,
    )


def tensors(config: ModelConfig) -> dict[str, Source]:
    """The names that GPT2LMHeadModel saves; older files leave out the first word."""
    D = config.d_model
    found = {
        "embed": Source("transformer.wte.weight"),
        "positions": Source("transformer.wpe.weight"),
        **norm("norm", "transformer.ln_f", config),
    }
    if not config.tied:
        found["unembed"] = Source("lm_head.weight")
    for i in range(len(config.layers)):
        ours, theirs = f"layers.{i}", f"transformer.h.{i}"
        found |= norm(f"{ours}.pre_attention", f"{theirs}.ln_1", config)
        found |= norm(f"{ours}.pre_mlp", f"{theirs}.ln_2", config)
        for j, part in enumerate("qkv"):
            found |= _linear(f"{ours}.attention.{part}", f"{theirs}.attn.c_attn", j * D, 3 * D)
        found |= _linear(f"{ours}.attention.out", f"{theirs}.attn.c_proj")
        found |= _linear(f"{ours}.mlp.up", f"{theirs}.mlp.c_fc")
        found |= _linear(f"{ours}.mlp.down", f"{theirs}.mlp.c_proj")
    return found


def _linear(ours: str, theirs: str, first: int = 0, rows: int | None = None) -> dict[str, Source]:
    return {
        f"{ours}.w": Source(f"{theirs}.weight", first, rows, transposed=True),
        f"{ours}.b": Source(f"{theirs}.bias", first, rows),
    }


GPT2 = Family(
    "gpt2", ("GPT2LMHeadModel",), read, tensors, ignored=(".attn.bias", ".attn.masked_bias")
)
