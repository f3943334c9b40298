"""What the machine is, in a process of its own: the parent must not hold the GPU.

python -m examples.peers.machine: prints hardware, versions, commit and date as one JSON object
"""

import json
import os
import subprocess
import sys
from importlib import metadata

from examples.peers.process import ROOT
from jaxinfer.bench import environment

PACKAGES = ("torch", "transformers", "vllm", "llama-cpp-python")


def describe(platform: str) -> dict:
    """The head of a result but for kind and command, seen from `platform`."""
    place = {"JAX_PLATFORMS": "cpu"} if platform == "cpu" else {}
    found = subprocess.run(
        [sys.executable, "-m", "examples.peers.machine"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=ROOT,
        env=os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | place,
    )
    return json.loads(found.stdout.splitlines()[-1])


def main() -> None:
    found = environment.describe("peers", [], environment.hardware())
    for name in PACKAGES:
        try:
            found["versions"][name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    print(json.dumps({k: v for k, v in found.items() if k not in ("kind", "command")}))


if __name__ == "__main__":
    main()
