"""Well-known models by name: what their `config.json` says, so that one can plan without fetching.

Data alone: the fields that say something about inference, as the files on the hub have them, and read
by the families' own code. Gemma 3 from 4B on is its text half.
"""

import difflib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from jaxinfer.config import ModelConfig
from jaxinfer.models.registry import family_of

_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "rms_norm_eps": 1e-5,
    "head_dim": 128,
    "num_key_value_heads": 8,
}
_LLAMA2 = {**_LLAMA, "vocab_size": 32000, "max_position_embeddings": 4096}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_LLAMA3 = {
    **_LLAMA,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "rope_scaling": _LLAMA3_ROPE,
}
_LLAMA32 = {
    **_LLAMA3,
    "rope_scaling": {**_LLAMA3_ROPE, "factor": 32.0},
    "tie_word_embeddings": True,
}
_MISTRAL = {
    "architectures": ["MistralForCausalLM"],
    "head_dim": 128,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000.0,
    "sliding_window": None,
}
_QWEN2 = {
    "architectures": ["Qwen2ForCausalLM"],
    "vocab_size": 152064,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "use_sliding_window": False,
    "num_key_value_heads": 8,
}
_QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "head_dim": 128,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "attention_bias": False,
    "use_sliding_window": False,
    "tie_word_embeddings": False,
}
_GEMMA2 = {
    "architectures": ["Gemma2ForCausalLM"],
    "vocab_size": 256000,
    "max_position_embeddings": 8192,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}
_GEMMA3 = {
    "architectures": ["Gemma3ForCausalLM"],
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 1024,
    "sliding_window_pattern": 6,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
}
_PHI3 = {
    "architectures": ["Phi3ForCausalLM"],
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "tie_word_embeddings": False,
}
_OLMO2 = {
    "architectures": ["Olmo2ForCausalLM"],
    "vocab_size": 100352,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 500000,
    "tie_word_embeddings": False,
}


def _shape(family: dict, D: int, F: int, L: int, N: int, K: int | None = None, **more) -> Mapping:
    """A family's fields with one model's sizes, under the names that config.json has for them."""
    heads = {} if K is None else {"num_key_value_heads": K}
    return MappingProxyType(
        {
            **family,
            "hidden_size": D,
            "intermediate_size": F,
            "num_hidden_layers": L,
            "num_attention_heads": N,
            **heads,
            **more,
        }
    )


PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "llama-2-7b": _shape(_LLAMA2, 4096, 11008, 32, 32, 32),
        "llama-2-13b": _shape(_LLAMA2, 5120, 13824, 40, 40, 40),
        "llama-2-70b": _shape(_LLAMA2, 8192, 28672, 80, 64),
        "llama-3.1-8b": _shape(_LLAMA3, 4096, 14336, 32, 32),
        "llama-3.1-70b": _shape(_LLAMA3, 8192, 28672, 80, 64),
        "llama-3.1-405b": _shape(_LLAMA3, 16384, 53248, 126, 128),
        "llama-3.2-1b": _shape(_LLAMA32, 2048, 8192, 16, 32, head_dim=64),
        "llama-3.2-3b": _shape(_LLAMA32, 3072, 8192, 28, 24),
        "llama-3.3-70b": _shape(_LLAMA3, 8192, 28672, 80, 64),
        "smollm2-135m": _shape(
            _LLAMA,
            576,
            1536,
            30,
            9,
            3,
            head_dim=64,
            vocab_size=49152,
            max_position_embeddings=8192,
            rope_theta=100000,
            tie_word_embeddings=True,
        ),
        "smollm2-360m": _shape(
            _LLAMA,
            960,
            2560,
            32,
            15,
            5,
            head_dim=64,
            vocab_size=49152,
            max_position_embeddings=8192,
            rope_theta=100000,
            tie_word_embeddings=True,
        ),
        "mistral-7b-v0.3": _shape(
            _MISTRAL, 4096, 14336, 32, 32, vocab_size=32768, max_position_embeddings=32768
        ),
        "mistral-nemo-12b": _shape(
            _MISTRAL, 5120, 14336, 40, 32, vocab_size=131072, max_position_embeddings=131072
        ),
        "mistral-small-24b": _shape(
            _MISTRAL,
            5120,
            32768,
            40,
            32,
            vocab_size=131072,
            max_position_embeddings=32768,
            rope_theta=100000000.0,
        ),
        "qwen2.5-7b": _shape(_QWEN2, 3584, 18944, 28, 28, 4),
        "qwen2.5-14b": _shape(_QWEN2, 5120, 13824, 48, 40),
        "qwen2.5-32b": _shape(_QWEN2, 5120, 27648, 64, 40),
        "qwen2.5-72b": _shape(_QWEN2, 8192, 29568, 80, 64),
        "qwen3-0.6b": _shape(_QWEN3, 1024, 3072, 28, 16, tie_word_embeddings=True),
        "qwen3-1.7b": _shape(_QWEN3, 2048, 6144, 28, 16, tie_word_embeddings=True),
        "qwen3-4b": _shape(_QWEN3, 2560, 9728, 36, 32, tie_word_embeddings=True),
        "qwen3-8b": _shape(_QWEN3, 4096, 12288, 36, 32),
        "qwen3-14b": _shape(_QWEN3, 5120, 17408, 40, 40),
        "qwen3-32b": _shape(_QWEN3, 5120, 25600, 64, 64),
        "gemma-2-2b": _shape(_GEMMA2, 2304, 9216, 26, 8, 4),
        "gemma-2-9b": _shape(_GEMMA2, 3584, 14336, 42, 16, 8),
        "gemma-2-27b": _shape(
            _GEMMA2, 4608, 36864, 46, 32, 16, head_dim=128, query_pre_attn_scalar=144
        ),
        "gemma-3-1b": _shape(
            _GEMMA3,
            1152,
            6912,
            26,
            4,
            1,
            vocab_size=262144,
            max_position_embeddings=32768,
            sliding_window=512,
            rope_scaling=None,
        ),
        "gemma-3-4b": _shape(_GEMMA3, 2560, 10240, 34, 8, 4),
        "gemma-3-12b": _shape(_GEMMA3, 3840, 15360, 48, 16, 8),
        "gemma-3-27b": _shape(
            _GEMMA3, 5376, 21504, 62, 32, 16, head_dim=128, query_pre_attn_scalar=168
        ),
        "phi-3-mini-4k": _shape(
            _PHI3, 3072, 8192, 32, 32, 32, vocab_size=32064, max_position_embeddings=4096
        ),
        "phi-4": _shape(
            _PHI3,
            5120,
            17920,
            40,
            40,
            10,
            vocab_size=100352,
            max_position_embeddings=16384,
            rope_theta=250000,
        ),
        "olmo-2-7b": _shape(_OLMO2, 4096, 11008, 32, 32, 32),
        "olmo-2-13b": _shape(_OLMO2, 5120, 13824, 40, 40, 40),
    }
)


def find(name: str) -> ModelConfig | None:
    """The preset called `name`, in any case; None where there is none."""
    hf = PRESETS.get(name.lower())
    return None if hf is None else family_of(hf).read(hf)


def near(name: str) -> list[str]:
    """Names that resemble `name`, most alike first."""
    word = name.lower().rpartition("/")[2]
    found = difflib.get_close_matches(word, PRESETS, n=3, cutoff=0.6)
    return found or [preset for preset in PRESETS if word and preset.startswith(word)][:5]
