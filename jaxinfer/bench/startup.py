"""Start-up: from the start of a process to its first token, with a cold and with a warm compile cache.

Every run is a process of its own. "cold" has an empty compile cache, "warm" the one that the cold run
left; files of the model are in the operating system's cache or not, as they happen to be.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).parents[2]
CODE = "import time; t = time.time(); from jaxinfer.bench import first_token; first_token.main(t)"
LIMIT_S = 1800


@dataclass(frozen=True)
class Case:
    """A model as `subject.prepare` takes it, and how many prompt tokens come before the first one."""

    model: str | None
    source: str = "checkpoint"
    dtype: str | None = None
    quantize: str | None = None
    prompt: int = 16
    kv_dtype: str | None = None


def run(
    case: Case, *, repeats: int = 3, progress: Callable[[str], None] = lambda what: None
) -> tuple[list[dict], dict]:
    """Two rows, cold and warm, of medians in seconds: the parts, and first_token_s of all together;
    and the hardware that the processes saw. RuntimeError says why a process failed.
    """
    runs: dict[str, list[dict]] = {"cold": [], "warm": []}
    for i in range(repeats):
        with tempfile.TemporaryDirectory(prefix="jaxinfer-startup-") as scratch:
            for cache, done in runs.items():
                progress(f"{cache} start, {i + 1} of {repeats}")
                done.append(_process(case, scratch))
    rows = [_row(cache, case, done) for cache, done in runs.items()]
    return rows, runs["cold"][0]["hardware"]


def _process(case: Case, scratch: str) -> dict:
    paths = [str(SOURCE), *filter(None, [os.environ.get("PYTHONPATH")])]
    asked = {
        "model": case.model,
        "source": case.source,
        "dtype": case.dtype,
        "quantize": case.quantize,
        "prompt": case.prompt,
        "kv_dtype": case.kv_dtype,
        "cache": str(Path(scratch, "programs")),
        "start": time.time(),
    }
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(asked)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise RuntimeError(f"a fresh process gave no first token: {last[0]}")
    return json.loads(done.stdout.splitlines()[-1])


def _row(cache: str, case: Case, runs: list[dict]) -> dict:
    times = [name for name in runs[0] if name.endswith("_s")]
    totals = [run["first_token_s"] for run in runs]
    medians = {name: statistics.median(run[name] for run in runs) for name in times}
    return {
        **{name: runs[0][name] for name in ("model", "weights", "dtype", "quantize", "kv_dtype")},
        "cache": cache,
        "prompt": case.prompt,
        "repeats": len(runs),
        **medians,
        "spread": (max(totals) - min(totals)) / medians["first_token_s"],
    }
