"""An engine in a process of its own, so that its memory is returned and its errors stay with it."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import IO, NamedTuple, cast

from examples.peers.engines import Host

ROOT = Path(__file__).parents[2]


class Case(NamedTuple):
    """`batch` prompts of `context` tokens, `new` tokens after each."""

    batch: int
    context: int
    new: int


class PeerError(RuntimeError):
    """An engine failed; the text ends with what it said last."""


class Worker:
    """A peer in its process, loaded and waiting. name: "peer variant"; log: what it says besides its
    answers. PeerError where it cannot load.
    """

    def __init__(self, name: str, folder: Path, host: Host, log: IO[str]):
        self.name, self._log = name, log
        peer, variant = name.split()
        settings = json.dumps(
            {"platform": host.platform, "share": host.share, "scratch": str(host.scratch)}
        )
        command = [sys.executable, "-m", "examples.peers.worker", peer, variant]
        environment = os.environ | {"HF_HUB_OFFLINE": "1"} | _memory(host)
        self._process = subprocess.Popen(
            [*command, str(folder.resolve()), settings],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
            cwd=ROOT,
        )
        try:
            self._answer()
        except PeerError:
            self.close()
            raise

    def run(self, case: Case, seed: int) -> dict:
        """The fields of a `timing.Timing`. PeerError where the engine could not."""
        pipe = cast("IO[str]", self._process.stdin)
        with contextlib.suppress(BrokenPipeError):  # it has ended: its answer says why
            pipe.write(json.dumps(case._asdict() | {"seed": seed}) + "\n")
            pipe.flush()
        return json.loads(self._answer())

    def close(self) -> None:
        """End the process and wait until it has."""
        with contextlib.suppress(BrokenPipeError):
            cast("IO[str]", self._process.stdin).close()
        self._process.wait()
        cast("IO[str]", self._process.stdout).close()

    def _answer(self) -> str:
        line = cast("IO[str]", self._process.stdout).readline()
        if not line:
            self._process.wait()
            self._log.seek(0)
            raise PeerError(f"{self.name} failed:\n{self._log.read()[-3000:].strip()}")
        return line


def _memory(host: Host) -> dict[str, str]:
    """Where JAX may run, and that it takes memory as it needs it."""
    if host.platform == "cpu":
        return {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    return {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
