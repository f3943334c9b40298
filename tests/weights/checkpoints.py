"""Fresh random checkpoints in the Hugging Face layout, written by the safetensors library."""

import json
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import save_file

from jaxinfer.models import decoder, registry

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 259,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}


def equal(a, b) -> bool:
    """Whether two pytrees have the same structure, dtypes and values, bit for bit."""
    same = jax.tree.map(lambda x, y: x.dtype == y.dtype and np.array_equal(x, y), a, b)
    return all(jax.tree.leaves(same))


def random_tensors(config, dtype) -> dict[str, np.ndarray]:
    """Canonical tensors of a model, from fresh randomness."""
    rng = np.random.default_rng()
    shapes = decoder.canonical_shapes(config)
    return {name: (rng.standard_normal(shape) / 8).astype(dtype) for name, shape in shapes.items()}


def file_tensors(family, config, canonical) -> dict[str, np.ndarray]:
    """The tensors of the files, by the definition of `Source`: fused and transposed."""
    rows = {}
    for name, source in family.tensors(config).items():
        rows.setdefault(source.name, []).append((source.first, canonical[name], source))
    files = {}
    for name, parts in rows.items():
        value = np.concatenate([part for _, part, _ in sorted(parts, key=lambda item: item[0])])
        files[name] = np.ascontiguousarray(value.T) if parts[0][2].transposed else value
    return files


def write(folder: Path, hf: dict, tensors: dict[str, np.ndarray], shards: int = 1) -> Path:
    """A checkpoint folder of one file, or of several with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(hf))
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    weight_map = {}
    for i, name in enumerate(tensors):
        weight_map[name] = f"model-{i % shards + 1:05}-of-{shards:05}.safetensors"
    for file in set(weight_map.values()):
        part = {name: tensors[name] for name in tensors if weight_map[name] == file}
        save_file(part, folder / file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def fresh(folder: Path, dtype=np.float32, shards: int = 1, **changes):
    """Write a fresh Llama checkpoint; returns (family, config, canonical tensors)."""
    hf = LLAMA | changes
    family = registry.family_of(hf)
    config = family.read(hf)
    canonical = random_tensors(config, dtype)
    write(folder, hf, file_tensors(family, config, canonical), shards)
    return family, config, canonical
