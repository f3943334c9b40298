"""StarCoder2 (Lozhkov et al. 2024): LayerNorm, a plain MLP, biases everywhere."""

from collections.abc import Mapping

from jaxinfer.config import ModelConfig
from jaxinfer.models import hf_config
from jaxinfer.models.family import Family, Source
from jaxinfer.models.hf_tensors import decoder_tensors

DEFAULTS = {
    "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 4096,
    "norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
    "num_key_value_heads": 2,
    "use_bias": True,
}


def read(hf: Mapping) -> ModelConfig:
    """config.json of a Starcoder2ForCausalLM."""
    hf = hf_config.with_defaults(hf, DEFAULTS)
    hf_config.only(hf, "norm_type", "layer_norm")
    hf_config.only(hf, "mlp_type", "default")
    sizes = hf_config.sizes(hf)
    window = hf_config.optional(hf_config.integer, hf, "sliding_window")
    bias = hf_config.flag(hf, "use_bias")
    return ModelConfig(
        family="starcoder2",
        **sizes,
        layers=hf_config.same_layers(hf, hf_config.rope(hf, sizes["head_dim"]), window),
        norm="layer",
        norm_eps=hf_config.number(hf, "norm_epsilon"),
        activation=hf_config.activation(hf, "hidden_act"),
        gated=False,
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=bias,
    )


def tensors(config: ModelConfig) -> dict[str, Source]:
    """Llama's names but for the MLP."""
    return decoder_tensors(config, mlp={"up": "c_fc", "down": "c_proj"})


STARCODER2 = Family("starcoder2", ("Starcoder2ForCausalLM",), read, tensors)
