"""From the start of a process to its first text."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from examples.peers.process import ROOT
from examples.peers.timing import spread


def measure(
    scratch: Path, repeats: int, log: Callable[[str], None], model: str | None = None
) -> dict:
    """Seconds from the start of `python -m jaxinfer generate` to its first text, programs already
    in the cache.
    """
    command = [
        sys.executable,
        "-m",
        "jaxinfer",
        "generate",
        "--prompt=def fibonacci(n):",
        "--max_new_tokens=32",
        "--seed=1",
        f"--compile_cache={scratch / 'programs'}",
        *([f"--model={model}"] if model else []),
    ]
    seconds = []
    for repeat in range(repeats + 1):
        step = f"repetition {repeat} of {repeats}" if repeat else "filling the compile cache"
        log(f"start-up: {step}")
        began = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
        )
        assert process.stdout is not None
        process.stdout.read(1)
        seconds.append(time.perf_counter() - began)
        _, error = process.communicate()
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{error.decode()}")
    return {"first_text_s": spread(seconds[1:]), "empty_cache_s": round(seconds[0], 2)}
