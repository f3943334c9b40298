"""The same function with activation outliers: what trained models of some billions of parameters show
(LLM.int8(), section 4) and small ones hardly do.
"""

from pathlib import Path
from shutil import copytree

import numpy as np
from safetensors.numpy import load_file, save_file

CHANNELS = 4  # of each norm's output, at even distances
FACTOR = 64  # a power of two, so that no weight is rounded
READERS = {  # of each norm of a Llama layer
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}


def plant(source: Path, target: Path) -> None:
    """Copy a Llama checkpoint (one file of weights) to `target`, a folder that is not there yet, with
    CHANNELS activations after each norm FACTOR times as large, and the columns that read them smaller
    by as much. KeyError: a checkpoint with other tensors.
    """
    copytree(source, target)
    tensors = load_file(source / "model.safetensors")
    for name in [name for name in tensors if name.split(".")[-2] in READERS]:
        *layer, norm, _ = name.split(".")
        s = np.ones_like(tensors[name])
        s[np.linspace(0, len(s) - 1, CHANNELS + 2).astype(int)[1:-1]] = FACTOR
        tensors[name] = tensors[name] * s
        for reader in READERS[norm]:
            own = ".".join((*layer, reader, "weight"))
            tensors[own] = tensors[own] / s[None]
    save_file(tensors, target / "model.safetensors")
