"""jaxinfer as its users call it: `Model.stream` over token ids."""

import time
from pathlib import Path

import jaxinfer
from examples.peers.engines import Host
from examples.peers.timing import Timing, from_events
from jaxinfer import compile_cache

VARIANTS = {
    "cpu": {
        "f32": dict(dtype="float32"),
        "bf16": dict(dtype="bfloat16"),
        "w8a8": dict(dtype="float32", quantize="w8a8"),
    },
    "gpu": {
        "bf16": dict(dtype="bfloat16"),
        "int8": dict(dtype="bfloat16", quantize="int8"),
    },
}
BURST = 8  # tokens that the engine decodes before the host looks again
CHUNK = {"cpu": 512, "gpu": 2048}  # prompt tokens of one text that a step reads


class Engine:
    """One loaded model; variant: a key of VARIANTS."""

    def __init__(self, folder: Path, variant: str, host: Host):
        compile_cache.enable(host.scratch / "programs")
        self._loaded = jaxinfer.load(folder, progress=False, **VARIANTS[host.platform][variant])
        self._chunk = CHUNK[host.platform]
        self._models: dict[tuple[int, int], jaxinfer.Model] = {}

    def run(self, prompts: list[list[int]], new: int) -> Timing:
        """Read the prompts and generate `new` tokens after each, and a burst that is not counted."""
        params = jaxinfer.SamplingParams(
            temperature=0.0, max_new_tokens=new + BURST, ignore_eos=True
        )
        model = self._model(len(prompts), len(prompts[0]))
        began = time.perf_counter()
        stream = model.stream(prompts, params)
        events = [(time.perf_counter(), chunk.index, chunk.token.token_id) for chunk in stream]
        return from_events(began, events, len(prompts), new)

    def _model(self, batch: int, length: int) -> jaxinfer.Model:
        """Every shape has its own, so that none waits for programs that another has replaced; without
        a tokenizer: no peer turns ids into text here.
        """
        if (batch, length) not in self._models:
            self._models[batch, length] = jaxinfer.Model(
                self._loaded.params,
                self._loaded.config,
                max_slots=batch,
                chunk=self._chunk,
                decode_steps=BURST,
            )
        return self._models[batch, length]
