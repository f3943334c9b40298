"""A Llama checkpoint in the Hugging Face layout -> a GGUF file without a vocabulary, for llama.cpp."""

import json
import re
from pathlib import Path

import gguf
import numpy as np
from safetensors import safe_open

TYPES = {
    "f32": gguf.GGMLQuantizationType.F32,
    "bf16": gguf.GGMLQuantizationType.BF16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
}
NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write(folder: Path, to: Path, kind: str) -> Path:
    """Convert the checkpoint in `folder`; kind: "f32", "bf16" or "q8_0" (the type of the matrices;
    norms are f32).
    """
    config = json.loads((folder / "config.json").read_text())
    heads, kv_heads, head_dim = (
        config["num_attention_heads"],
        config["num_key_value_heads"],
        config["head_dim"],
    )
    out = gguf.GGUFWriter(to, "llama")
    out.add_vocab_size(config["vocab_size"])
    out.add_context_length(config["max_position_embeddings"])
    out.add_embedding_length(config["hidden_size"])
    out.add_block_count(config["num_hidden_layers"])
    out.add_feed_forward_length(config["intermediate_size"])
    out.add_head_count(heads)
    out.add_head_count_kv(kv_heads)
    out.add_key_length(head_dim)
    out.add_value_length(head_dim)
    out.add_rope_dimension_count(head_dim)
    out.add_rope_freq_base(config["rope_theta"])
    out.add_layer_norm_rms_eps(config["rms_norm_eps"])
    out.add_tokenizer_model("no_vocab")
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "flax") as source:
            names = source.keys()
            for name in names:
                tensor = np.asarray(source.get_tensor(name).astype("float32"))
                if name.endswith("q_proj.weight"):
                    tensor = _pair(tensor, heads)
                if name.endswith("k_proj.weight"):
                    tensor = _pair(tensor, kv_heads)
                type_ = TYPES[kind] if tensor.ndim == 2 else gguf.GGMLQuantizationType.F32
                out.add_tensor(_name(name), gguf.quants.quantize(tensor, type_), raw_dtype=type_)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return to


def _pair(w: np.ndarray, heads: int) -> np.ndarray:
    """Rows reordered from rotations of (i, i + H / 2) to llama.cpp's rotations of neighbours (2 i,
    2 i + 1).
    """
    rows, columns = w.shape
    return w.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _name(name: str) -> str:
    stem = name.removesuffix(".weight")
    inside = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", stem)
    if inside:
        return f"blk.{inside[1]}.{NAMES[inside[2]]}.weight"
    return f"{TOP[stem]}.weight"
