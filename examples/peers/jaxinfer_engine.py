"""jaxinfer as its users call it: `Model.stream` over token ids."""

import time
from pathlib import Path

import jaxinfer
from examples.peers.timing import Timing, from_events
from jaxinfer import compile_cache

VARIANTS = {
    "f32": dict(dtype="float32"),
    "bf16": dict(dtype="bfloat16"),
    "w8a8": dict(dtype="float32", quantize="w8a8"),
}
BURST = 8  # tokens that the engine decodes before the host looks again


class Engine:
    """One loaded model; variant: a key of VARIANTS."""

    def __init__(self, folder: Path, variant: str, scratch: Path):
        compile_cache.enable(scratch / "programs")
        loaded = jaxinfer.load(folder, progress=False, **VARIANTS[variant])
        # without a tokenizer: no peer turns ids into text here
        self._model = jaxinfer.Model(loaded.params, loaded.config, decode_steps=BURST)

    def run(self, prompts: list[list[int]], new: int) -> Timing:
        """Read the prompts and generate `new` tokens after each, and a burst that is not counted."""
        params = jaxinfer.SamplingParams(
            temperature=0.0, max_new_tokens=new + BURST, ignore_eos=True
        )
        began = time.perf_counter()
        stream = self._model.stream(prompts, params)
        events = [(time.perf_counter(), chunk.index, chunk.token.token_id) for chunk in stream]
        return from_events(began, events, len(prompts), new)
