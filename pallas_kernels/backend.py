"""The only look at the device: what a traced program will run on, and what it may be made of.

Where a device has kernels, or forms of plain XLA that suit it better, programs take them. They give
that up where the environment says PALLAS_KERNELS=off, or inside `kernels_allowed(False)`: for finding
out what they change, or going on without one that fails.
"""

import os
from contextlib import AbstractContextManager

import jax

_allowed = jax.make_user_context(os.environ.get("PALLAS_KERNELS", "on") != "off")


def kernels_allowed(allowed: bool) -> AbstractContextManager:
    """For programs traced inside: whether they may use kernels and the forms made for one kind of
    device. jax.jit traces anew where that differs.
    """
    return _allowed(allowed)


def kernels() -> bool:
    """Whether a traced program may use kernels and the forms made for one kind of device."""
    return bool(_allowed.value)


def platform() -> str:
    """ "cpu", "gpu" or "tpu": that of the mesh in force (also an ahead-of-time topology), else
    jax's default.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is None:
        return jax.default_backend()
    kind = device.device_kind.lower()
    return "cpu" if kind == "cpu" else "tpu" if kind.startswith("tpu") else "gpu"


def whole_program() -> bool:
    """Whether a traced program is what one device runs: no mesh, a mesh of one, or the inside of a
    `shard_map`. Elsewhere the partitioner would have to split a kernel, and cannot.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.empty or mesh.size == 1 or set(mesh.manual_axes) == set(mesh.axis_names)


def hopper() -> bool:
    """Whether a traced program will run on one GPU of compute capability 9 (H100, H200): what our
    Mosaic GPU kernels are written for.
    """
    if not kernels() or platform() != "gpu" or not jax.sharding.get_abstract_mesh().empty:
        return False
    return str(getattr(jax.devices()[0], "compute_capability", "")).startswith("9.")


def one_cpu() -> bool:
    """Whether a traced program is for one CPU device and may be in the forms that suit it."""
    return kernels() and platform() == "cpu" and jax.sharding.get_abstract_mesh().empty


def tpu() -> bool:
    """Whether a traced program will run on TPUs and may use our kernels for them."""
    return kernels() and platform() == "tpu"


def multiprocessors() -> int:
    """How many streaming multiprocessors the default device has; an H100's or H200's 132 where there
    is no GPU to ask.
    """
    return getattr(jax.devices()[0], "core_count", None) or 132
