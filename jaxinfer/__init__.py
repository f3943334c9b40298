"""jaxinfer: language-model inference in JAX, on NVIDIA GPUs, TPUs and CPUs from one source.

    import jaxinfer
    model = jaxinfer.load("path/or/hub-id")
    print(model.generate("def fibonacci(n):", temperature=0)[0].text)

`Model` turns text into text. `logits`, `prefill`, `decode`, `generate` and `score` are pure
functions for use inside your own `jax.jit`.
"""

from jaxinfer.config import LayerConfig, ModelConfig, Rope
from jaxinfer.generate import (
    Generated,
    decode,
    embed,
    generate,
    logits,
    new_cache,
    prefill,
    score,
    score_alternatives,
)
from jaxinfer.model import Model, Scored, Stream, TextChunk, load
from jaxinfer.models.decoder import Params, init
from jaxinfer.request import Completion, FinishReason, Request, SamplingParams, Token
from jaxinfer.sampler import Sampling, pack
from jaxinfer.sharding import make_mesh
from jaxinfer.tokenizer import Tokenizer
from jaxinfer.version import __version__

__all__ = [
    "Completion",
    "FinishReason",
    "Generated",
    "LayerConfig",
    "Model",
    "ModelConfig",
    "Params",
    "Request",
    "Rope",
    "Sampling",
    "SamplingParams",
    "Scored",
    "Stream",
    "TextChunk",
    "Token",
    "Tokenizer",
    "__version__",
    "decode",
    "embed",
    "generate",
    "init",
    "load",
    "logits",
    "make_mesh",
    "new_cache",
    "pack",
    "prefill",
    "score",
    "score_alternatives",
]
