"""The engines that can be compared: what each needs, and how its variants are called.

Each lives in `<name>_engine.py` with one interface, and is imported only in a process of its own:
`Engine(folder, variant, host)` loads a checkpoint, `Engine.run(prompts, new)` gives a
`timing.Timing` for greedy continuations.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PLATFORMS = ("cpu", "gpu")


@dataclass(frozen=True)
class Host:
    """Where an engine runs. platform: one of PLATFORMS. share: the part of the GPU's memory that
    this engine may take. scratch: a folder for what it converts and compiles.
    """

    platform: str
    share: float
    scratch: Path


@dataclass(frozen=True)
class Peer:
    """packages: what must be importable. cpu, gpu: the variants it has there, the plain one first."""

    packages: tuple[str, ...]
    cpu: tuple[str, ...] = ()
    gpu: tuple[str, ...] = ()

    @property
    def installed(self) -> bool:
        return all(importlib.util.find_spec(name) is not None for name in self.packages)

    def variants(self, platform: str) -> tuple[str, ...]:
        return {"cpu": self.cpu, "gpu": self.gpu}[platform]


PEERS = {
    "jaxinfer": Peer(("jax",), cpu=("f32", "bf16", "w8a8"), gpu=("bf16", "int8")),
    "transformers": Peer(
        ("torch", "transformers"),
        cpu=("f32", "bf16", "f32-compiled", "bf16-compiled"),
        gpu=("bf16", "bf16-static", "bf16-compiled"),
    ),
    "vllm": Peer(("vllm",), gpu=("bf16", "fp8")),
    "llamacpp": Peer(("llama_cpp", "gguf"), cpu=("f32", "bf16", "q8_0"), gpu=("bf16", "q8_0")),
}


def names(platform: str) -> list[str]:
    """Every "peer variant" of a platform whose packages are here."""
    return [
        f"{name} {variant}"
        for name, peer in PEERS.items()
        if peer.installed
        for variant in peer.variants(platform)
    ]


def missing(platform: str) -> list[str]:
    """The peers of a platform whose packages are not here."""
    return [n for n, peer in PEERS.items() if peer.variants(platform) and not peer.installed]


def choose(given: str, known: Sequence[str], flag: str) -> list[str]:
    """A list of names with commas between. SystemExit names one that is not known."""
    chosen = given.split(",")
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise SystemExit(f"--{flag} needs some of {', '.join(known)}, got {', '.join(unknown)}")
    return chosen
