"""Hugging Face transformers on torch, in the leanest greedy loop it allows."""

import time
from pathlib import Path

import torch
from transformers import DynamicCache, LlamaForCausalLM, StaticCache

from examples.peers.timing import THREADS, Timing

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
VARIANTS = ("f32", "bf16", "f32-compiled", "bf16-compiled")


class Engine:
    """variant: a dtype, or a dtype with "-compiled": decode steps through torch.compile over a
    static cache.
    """

    def __init__(self, folder: Path, variant: str, scratch: Path):
        torch.set_num_threads(THREADS)
        dtype, _, compiled = variant.partition("-")
        self._model = LlamaForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype]).eval()
        self._step = (
            torch.compile(self._model.forward, dynamic=False) if compiled else self._model.forward
        )
        self._compiled = bool(compiled)

    @torch.inference_mode()
    def run(self, prompts: list[list[int]], new: int) -> Timing:
        """Read the prompts and generate `new` tokens after each."""
        ids = torch.tensor(prompts)
        length = ids.shape[1]
        config = self._model.config
        cache = (
            StaticCache(config, max_cache_len=length + new)
            if self._compiled
            else DynamicCache(config=config)
        )
        began = time.perf_counter()
        out = self._model(ids, past_key_values=cache, logits_to_keep=1, use_cache=True)
        token = out.logits[:, -1].argmax(-1, keepdim=True)
        first = time.perf_counter()
        tokens = [token]
        for i in range(length, length + new - 1):
            place = torch.tensor([i])
            out = self._step(token, past_key_values=cache, position_ids=place[None], use_cache=True)
            token = out.logits[:, -1].argmax(-1, keepdim=True)
            tokens.append(token)
        done = time.perf_counter()
        return Timing(
            first - began, done - first, len(prompts) * (new - 1), torch.cat(tokens, 1).tolist()
        )
