"""Write and read models in the Hugging Face layout, and save training state for a later call.

An exported folder holds config.json (LlamaForCausalLM), model.safetensors in bfloat16,
generation_config.json and the tokenizer files: transformers, llama.cpp's converter and jaxinfer
read it as any other checkpoint.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from examples.training.tokenizer import BOS, EOS, PAD
from examples.training.transformer import Params, Shape

BOS_ID, EOS_ID, PAD_ID = 0, 1, 2
NAMES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
}


def config(shape: Shape, dtype: str = "bfloat16") -> dict[str, Any]:
    """The contents of config.json."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_size,
        "hidden_act": "silu",
        "max_position_embeddings": shape.context,
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_theta,
        "rope_scaling": None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "pad_token_id": PAD_ID,
        "torch_dtype": dtype,
        "use_cache": True,
    }


def tensors(params: Params, shape: Shape, dtype: Any = jnp.bfloat16) -> dict[str, np.ndarray]:
    """Hugging Face tensor names (matrices as [out, in]) -> host arrays of `dtype`."""
    host = {name: np.asarray(value.astype(dtype)) for name, value in params.items()}
    named = {"model.embed_tokens.weight": host["embed"], "model.norm.weight": host["norm"]}
    for name, module in NAMES.items():
        for index in range(shape.num_layers):
            named[f"model.layers.{index}.{module}.weight"] = np.ascontiguousarray(
                host[name][index].T
            )
    return named


def export(
    params: Params,
    shape: Shape,
    tokenizer: pathlib.Path,
    folder: pathlib.Path,
    dtype: str = "bfloat16",
) -> None:
    """Write a complete checkpoint folder; `tokenizer` is the path of tokenizer.json."""
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file(
        tensors(params, shape, jnp.dtype(dtype)), folder / "model.safetensors", {"format": "pt"}
    )
    shutil.copyfile(tokenizer, folder / "tokenizer.json")
    files = {
        "config.json": config(shape, dtype),
        "generation_config.json": {
            "bos_token_id": BOS_ID,
            "eos_token_id": EOS_ID,
            "pad_token_id": PAD_ID,
            "do_sample": True,
            "temperature": 0.7,
            "top_p": 0.95,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS,
            "eos_token": EOS,
            "pad_token": PAD,
            "add_bos_token": True,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": shape.context,
        },
        "special_tokens_map.json": {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def load(folder: pathlib.Path) -> tuple[Shape, Params]:
    """The model of an exported folder, parameters in float32."""
    stated = json.loads((folder / "config.json").read_text())
    shape = Shape(
        vocab_size=stated["vocab_size"],
        hidden_size=stated["hidden_size"],
        intermediate_size=stated["intermediate_size"],
        num_layers=stated["num_hidden_layers"],
        num_heads=stated["num_attention_heads"],
        num_kv_heads=stated["num_key_value_heads"],
        head_size=stated["head_dim"],
        context=stated["max_position_embeddings"],
        rope_theta=stated["rope_theta"],
        norm_eps=stated["rms_norm_eps"],
    )
    raw = safetensors.numpy.load_file(folder / "model.safetensors")
    raw = {name: value.astype(np.float32) for name, value in raw.items()}
    params = {"embed": raw["model.embed_tokens.weight"], "norm": raw["model.norm.weight"]}
    for name, module in NAMES.items():
        layers = [raw[f"model.layers.{i}.{module}.weight"].T for i in range(shape.num_layers)]
        params[name] = np.stack(layers)
    return shape, {name: jnp.asarray(value) for name, value in params.items()}


def save_state(path: pathlib.Path, state: Any, meta: dict[str, Any]) -> None:
    """Write every leaf of a training state and some numbers about it, atomically."""
    leaves = {str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    safetensors.numpy.save_file(leaves, unfinished, {"meta": json.dumps(meta)})
    os.replace(unfinished, path)


def restore_state(path: pathlib.Path, like: Any) -> tuple[Any, dict[str, Any]]:
    """The (state, meta) that `save_state` wrote; `like` gives the structure."""
    with safetensors.safe_open(path, framework="numpy") as file:
        meta = json.loads(file.metadata()["meta"])
        leaves = [jnp.asarray(file.get_tensor(str(i))) for i in range(len(jax.tree.leaves(like)))]
    return jax.tree.unflatten(jax.tree.structure(like), leaves), meta
