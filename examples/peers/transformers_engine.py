"""Hugging Face transformers on torch, in the leanest greedy loop it allows."""

import time
from pathlib import Path

import torch
from transformers import DynamicCache, LlamaForCausalLM, StaticCache

from examples.peers.engines import Host
from examples.peers.timing import THREADS, Timing

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


class Engine:
    """variant: a dtype, alone or with "-static" (eager steps over a static cache) or "-compiled"
    (decode steps through torch.compile over a static cache; on a GPU as CUDA graphs).
    """

    def __init__(self, folder: Path, variant: str, host: Host):
        dtype, _, form = variant.partition("-")
        self._device = torch.device("cuda" if host.platform == "gpu" else "cpu")
        if host.platform == "cpu":
            torch.set_num_threads(THREADS)
        model = LlamaForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype])
        self._model = model.eval().to(self._device)
        self._step = self._model.forward
        if form == "compiled":
            mode = "reduce-overhead" if host.platform == "gpu" else None
            self._step = torch.compile(self._model.forward, dynamic=False, mode=mode)
        self._static = bool(form)
        self._caches: dict[tuple[int, int], StaticCache] = {}

    @torch.inference_mode()
    def run(self, prompts: list[list[int]], new: int) -> Timing:
        """Read the prompts and generate `new` tokens after each."""
        ids = torch.tensor(prompts, device=self._device)
        B, length = ids.shape
        places = torch.arange(length + new, device=self._device)
        cache = self._cache(B, length + new)
        self._wait()
        began = time.perf_counter()
        out = self._model(ids, past_key_values=cache, logits_to_keep=1, use_cache=True)
        token = out.logits[:, -1].argmax(-1, keepdim=True)
        self._wait()
        first = time.perf_counter()
        tokens = [token]
        for i in range(length, length + new - 1):
            place = places[i : i + 1][None]
            out = self._step(token, past_key_values=cache, position_ids=place, use_cache=True)
            token = out.logits[:, -1].argmax(-1, keepdim=True)
            tokens.append(token)
        self._wait()
        done = time.perf_counter()
        return Timing(first - began, done - first, B * (new - 1), torch.cat(tokens, 1).tolist())

    def _cache(self, batch: int, length: int):
        """An empty cache. Static ones are kept: compiled programs know their addresses."""
        if not self._static:
            return DynamicCache(config=self._model.config)
        if (batch, length) not in self._caches:
            self._caches[batch, length] = StaticCache(self._model.config, max_cache_len=length)
        cache = self._caches[batch, length]
        cache.reset()
        return cache

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
