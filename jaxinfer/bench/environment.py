"""What a measurement was taken on and with: hardware, versions, commit, command."""

import datetime
import os
import platform
import shlex
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import jax

from jaxinfer.version import __version__

PACKAGES = ("jax", "jaxlib", "libtpu", "jax-cuda13-plugin", "jax-cuda12-plugin", "numpy")


def describe(kind: str, argv: Sequence[str], machine: dict) -> dict:
    """The head of a result: kind, date, commit, command, hardware (`machine`), versions."""
    return {
        "kind": kind,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "commit": commit(),
        "command": shlex.join(["jaxinfer", *argv]),
        "hardware": machine,
        "versions": versions(),
    }


def hardware() -> dict:
    """platform, device (its name), devices (how many), memory_bytes of one (None: unknown), cores
    of the host that this process may use.
    """
    devices = jax.local_devices()
    first = devices[0]
    limits = first.memory_stats() or {}
    return {
        "platform": first.platform,
        "device": _processor() if first.platform == "cpu" else first.device_kind,
        "devices": len(devices),
        "memory_bytes": limits.get("bytes_limit"),
        "cores": _cores(),
    }


def host() -> dict:
    """The same of the host alone: asks no device, which another program may be using."""
    return {
        "platform": "cpu",
        "device": _processor(),
        "devices": 1,
        "memory_bytes": host_memory(),
        "cores": _cores(),
    }


def _cores() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def host_memory() -> int:
    """Bytes of the host's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def versions() -> dict:
    """The versions of jaxinfer, python and the packages that run programs."""
    found = {"jaxinfer": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The git commit of the source this runs from, with "+" where files differ from it; None outside
    a repository.
    """
    source = Path(__file__).parents[2]
    if not (source / ".git").exists():
        return None
    git = ("git", "-C", str(source))
    try:
        head = subprocess.run(
            [*git, "rev-parse", "--short=12", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no", "--", "*.py"],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
