"""A Llama-shaped checkpoint with random weights, in the Hugging Face layout that every engine here
can read.
"""

import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

POOL = 1 << 26  # normal numbers that are drawn at most; larger models repeat them
WRITERS = 8


@dataclass(frozen=True)
class Shape:
    """The fields of a Llama config.json that decide its shape."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int = 2048
    tie_word_embeddings: bool = True


SHAPES = {
    "smollm2-360m": Shape(49152, 960, 2560, 32, 15, 5, 64),
    "llama-3.2-1b": Shape(128256, 2048, 8192, 16, 32, 8, 64, 8192),
    "llama-3.1-8b": Shape(128256, 4096, 14336, 32, 32, 8, 128, 8192, False),
    "tiny": Shape(300, 64, 96, 2, 2, 1, 32),
    "tiny-untied": Shape(300, 64, 96, 2, 2, 1, 32, tie_word_embeddings=False),
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
        "torch_dtype": "bfloat16",
    }


class _Draws:
    """Matrices of normal numbers, cut from one pool at random places."""

    def __init__(self, shape: Shape, seed: int):
        largest = max(shape.vocab_size, shape.intermediate_size) * shape.hidden_size
        self._rng = np.random.default_rng(seed)
        self._pool = self._rng.standard_normal(min(2 * largest, POOL), np.float32)
        self._scaled: dict[float, np.ndarray] = {}

    def __call__(self, rows: int, columns: int, deviation: float) -> np.ndarray:
        if deviation not in self._scaled:
            scaled = self._pool * np.float32(deviation)
            self._scaled[deviation] = scaled.astype(ml_dtypes.bfloat16)
        pool = self._scaled[deviation]
        size = rows * columns
        if size > len(pool):
            pool = np.tile(pool, math.ceil(size / len(pool)))
        start = int(self._rng.integers(len(pool) - size + 1))
        return pool[start : start + size].reshape(rows, columns)


def write(folder: Path, shape: Shape, seed: int = 0) -> Path:
    """Fill `folder` with a bfloat16 checkpoint: normal weights of deviation fan_in^-1/2 (embeddings
    0.02). A file a layer, and one for the rest.
    """
    draw, count = _Draws(shape, seed), shape.num_hidden_layers
    names = [f"model-{i + 1:05}-of-{count + 1:05}.safetensors" for i in range(count + 1)]
    folder.mkdir(parents=True, exist_ok=True)
    places: dict[str, str] = {}
    with ThreadPoolExecutor(WRITERS) as writers:
        written = []
        for i, name in enumerate(names):
            tensors = _layer(shape, i, draw) if i < count else _rest(shape, draw)
            places |= dict.fromkeys(tensors, name)
            written.append(
                writers.submit(save_file, tensors, folder / name, metadata={"format": "pt"})
            )
        for one in written:
            one.result()
    total = sum((folder / name).stat().st_size for name in names)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    (folder / "config.json").write_text(json.dumps(config(shape), indent=2))
    return folder


def _layer(shape: Shape, index: int, draw: _Draws) -> dict[str, np.ndarray]:
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
    found = {name: draw(*size, size[1] ** -0.5) for name, size in matrices.items()}
    for name in ("input_layernorm", "post_attention_layernorm"):
        found[name] = np.ones((D,), ml_dtypes.bfloat16)
    return {f"model.layers.{index}.{name}.weight": tensor for name, tensor in found.items()}


def _rest(shape: Shape, draw: _Draws) -> dict[str, np.ndarray]:
    V, D = shape.vocab_size, shape.hidden_size
    found = {
        "model.embed_tokens.weight": draw(V, D, 0.02),
        "model.norm.weight": np.ones((D,), ml_dtypes.bfloat16),
    }
    if not shape.tie_word_embeddings:
        found["lm_head.weight"] = draw(V, D, D**-0.5)
    return found
