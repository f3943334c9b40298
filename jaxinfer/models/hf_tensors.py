"""Where the tensors of a Llama-like decoder lie in a Hugging Face checkpoint."""

from collections.abc import Mapping

from jaxinfer.config import ModelConfig
from jaxinfer.models.family import Source

GATED_MLP = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
NORMS = {
    "pre": {"pre_attention": "input_layernorm", "pre_mlp": "post_attention_layernorm"},
    "post": {
        "post_attention": "post_attention_layernorm",
        "post_mlp": "post_feedforward_layernorm",
    },
    "sandwich": {
        "pre_attention": "input_layernorm",
        "post_attention": "post_attention_layernorm",
        "pre_mlp": "pre_feedforward_layernorm",
        "post_mlp": "post_feedforward_layernorm",
    },
}


def linear(ours: str, theirs: str, bias: bool) -> dict[str, Source]:
    """The weight, and the bias where there is one, of one linear map."""
    found = {f"{ours}.w": Source(f"{theirs}.weight")}
    return found | {f"{ours}.b": Source(f"{theirs}.bias")} if bias else found


def norm(ours: str, theirs: str, config: ModelConfig) -> dict[str, Source]:
    """The scale of one norm, and the bias of a LayerNorm."""
    found = {f"{ours}.scale": Source(f"{theirs}.weight")}
    return found | {f"{ours}.bias": Source(f"{theirs}.bias")} if config.norm == "layer" else found


def decoder_tensors(config: ModelConfig, mlp: Mapping[str, str] = GATED_MLP) -> dict[str, Source]:
    """Every canonical tensor of a decoder whose files follow Llama's names.

    mlp: the files' names of its feed-forward maps.
    """
    found = {"embed": Source("model.embed_tokens.weight"), **norm("norm", "model.norm", config)}
    if not config.tied:
        found["unembed"] = Source("lm_head.weight")
    for i in range(len(config.layers)):
        ours, theirs = f"layers.{i}", f"model.layers.{i}"
        for part in "qkv":
            found |= linear(
                f"{ours}.attention.{part}", f"{theirs}.self_attn.{part}_proj", config.qkv_bias
            )
        found |= linear(f"{ours}.attention.out", f"{theirs}.self_attn.o_proj", config.out_bias)
        if config.qk_norm != "none":
            for part in "qk":
                found[f"{ours}.attention.{part}_norm.scale"] = Source(
                    f"{theirs}.self_attn.{part}_norm.weight"
                )
        for part, name in mlp.items():
            found |= linear(f"{ours}.mlp.{part}", f"{theirs}.mlp.{name}", config.mlp_bias)
        for place, name in NORMS[config.norm_style].items():
            found |= norm(f"{ours}.{place}", f"{theirs}.{name}", config)
    return found
