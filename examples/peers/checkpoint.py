"""A Llama-shaped checkpoint with random weights, in the Hugging Face layout that every engine here
can read.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file


@dataclass(frozen=True)
class Shape:
    """The fields of a Llama config.json that decide its shape; embeddings are tied."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int = 2048


SHAPES = {
    "smollm2-360m": Shape(49152, 960, 2560, 32, 15, 5, 64),
    "tiny": Shape(300, 64, 96, 2, 2, 1, 32),
}


def config(shape: Shape) -> dict:
    """The config.json of a shape."""
    return asdict(shape) | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 100000.0,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }


def write(folder: Path, shape: Shape, seed: int = 0) -> Path:
    """Fill `folder` with a bfloat16 checkpoint: normal weights of deviation fan_in^-1/2 (embeddings
    0.02).
    """
    rng = np.random.default_rng(seed)
    D, F, H = shape.hidden_size, shape.intermediate_size, shape.head_dim
    N, K = shape.num_attention_heads, shape.num_key_value_heads
    matrices = {
        "self_attn.q_proj": (N * H, D),
        "self_attn.k_proj": (K * H, D),
        "self_attn.v_proj": (K * H, D),
        "self_attn.o_proj": (D, N * H),
        "mlp.gate_proj": (F, D),
        "mlp.up_proj": (F, D),
        "mlp.down_proj": (D, F),
    }

    def normal(rows, columns, deviation):
        drawn = rng.standard_normal((rows, columns), np.float32) * np.float32(deviation)
        return drawn.astype(ml_dtypes.bfloat16)

    ones = np.ones((D,), ml_dtypes.bfloat16)
    tensors = {
        "model.embed_tokens.weight": normal(shape.vocab_size, D, 0.02),
        "model.norm.weight": ones,
    }
    for i in range(shape.num_hidden_layers):
        for name, size in matrices.items():
            tensors[f"model.layers.{i}.{name}.weight"] = normal(*size, size[1] ** -0.5)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{i}.{name}.weight"] = ones
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(shape), indent=2))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
