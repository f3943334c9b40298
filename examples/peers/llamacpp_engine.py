"""llama.cpp through llama-cpp-python's C interface, several sequences through its batches."""

import ctypes
import time
from pathlib import Path

import llama_cpp
import numpy as np

from examples.peers import gguf_file
from examples.peers.engines import Host
from examples.peers.timing import THREADS, Timing


@llama_cpp.llama_log_callback
def _silent(level, text, data):
    return None


class Engine:
    """One loaded model; variant: a key of gguf_file.TYPES. Converts the checkpoint into the host's
    scratch folder first. RuntimeError: a GPU is asked for, and this build of llama.cpp knows none.
    """

    def __init__(self, folder: Path, variant: str, host: Host):
        llama_cpp.llama_log_set(_silent, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        if host.platform == "gpu" and not llama_cpp.llama_supports_gpu_offload():
            raise RuntimeError("llama.cpp was built without a GPU; install it with GGML_CUDA=on")
        path = host.scratch / f"{folder.name}.{variant}.gguf"
        if not path.exists():
            gguf_file.write(folder, path, variant)
        options = llama_cpp.llama_model_default_params()
        options.n_gpu_layers = 1000 if host.platform == "gpu" else 0
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), options)
        if not self._model:
            raise RuntimeError(f"llama.cpp could not load {path}")
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(
            llama_cpp.llama_model_get_vocab(self._model)
        )

    def run(self, prompts: list[list[int]], new: int) -> Timing:
        """Read the prompts and generate `new` tokens after each."""
        B, length = len(prompts), len(prompts[0])
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = B * -(-(length + new) // 256) * 256
        options.n_batch = max(B * length, 32)
        options.n_seq_max = B
        options.n_threads = options.n_threads_batch = THREADS
        context = llama_cpp.llama_init_from_model(self._model, options)
        batch = llama_cpp.llama_batch_init(B * length, 0, 1)
        rows = range(B)
        try:
            began = time.perf_counter()
            entries = [(row, i, token) for row in rows for i, token in enumerate(prompts[row])]
            token = self._decode(
                context, batch, entries, [row * length + length - 1 for row in rows]
            )
            first = time.perf_counter()
            tokens = [token]
            for i in range(length, length + new - 1):
                token = self._decode(
                    context, batch, [(row, i, token[row]) for row in rows], list(rows)
                )
                tokens.append(token)
            done = time.perf_counter()
        finally:
            llama_cpp.llama_batch_free(batch)
            llama_cpp.llama_free(context)
        return Timing(first - began, done - first, B * (new - 1), np.asarray(tokens).T.tolist())

    def _decode(self, context, batch, entries, wanted: list[int]) -> list[int]:
        """Run (row, position, token) entries; the most likely token after those at the places
        `wanted`.
        """
        batch.n_tokens = len(entries)
        for at, (row, position, token) in enumerate(entries):
            batch.token[at], batch.pos[at] = token, position
            batch.n_seq_id[at], batch.seq_id[at][0] = 1, row
            batch.logits[at] = False
        for at in wanted:
            batch.logits[at] = True
        code = llama_cpp.llama_decode(context, batch)
        if code:
            raise RuntimeError(f"llama_decode failed with {code=}")
        found = (llama_cpp.llama_get_logits_ith(context, at) for at in wanted)
        return [
            int(np.ctypeslib.as_array(logits, (self._vocab_size,)).argmax()) for logits in found
        ]
