"""Which mesh axis each letter of a shape lies on: the only place that names mesh axes.

A shape is written with the project's letters ("BTD"), so a shape names its own sharding.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "model")
RULES = {
    "B": "data",  # batch, and cache pages that belong to it
    "N": "model",  # query heads
    "K": "model",  # key-value heads
    "F": "model",  # feed-forward
    "V": "model",  # vocabulary
}


def spec(letters: str) -> PartitionSpec:
    """ "VD" -> PartitionSpec("model", None); letters without a rule, and ".", are not split; "?" is
    left to the partitioner.
    """
    return PartitionSpec(
        *(PartitionSpec.UNCONSTRAINED if letter == "?" else RULES.get(letter) for letter in letters)
    )


def make_mesh(axes: str | dict[str, int], devices=None) -> Mesh:
    """ "data=2,model=4" (or the same as a dict) -> a mesh with exactly the axes of AXES; a missing
    axis has size 1.
    """
    axes = mesh_axes(axes)
    shape = tuple(axes.values())
    devices = list(jax.devices() if devices is None else devices)
    needed = math.prod(shape)
    if needed > len(devices):
        wanted = ",".join(f"{name}={size}" for name, size in zip(AXES, shape, strict=True))
        raise ValueError(
            f"mesh {wanted} needs {needed} devices, got {len(devices)}; use a smaller mesh, or on CPU set "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={needed}"
        )
    grid = np.asarray(devices[:needed]).reshape(shape)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def mesh_axes(axes: str | dict[str, int]) -> dict[str, int]:
    """The sizes of all of AXES, a missing one 1; ValueError for others."""
    if isinstance(axes, str):
        axes = _parse(axes)
    unknown = set(axes) - set(AXES)
    if unknown:
        raise ValueError(
            f"mesh axes need to be among {', '.join(AXES)}, got {', '.join(sorted(unknown))}"
        )
    return {name: axes.get(name, 1) for name in AXES}


def _parse(text: str) -> dict[str, int]:
    axes = {}
    for part in text.split(","):
        name, _, size = part.partition("=")
        if not size.isdecimal() or int(size) == 0 or name.strip() in axes:
            raise ValueError(
                f"a mesh is written like data=2,model=4 with each axis once, got {text!r}"
            )
        axes[name.strip()] = int(size)
    return axes


def model_shards(mesh: Mesh | None) -> int:
    """Into how many parts tensor parallelism cuts a layer."""
    return 1 if mesh is None else mesh.shape["model"]


def data_shards(mesh: Mesh | AbstractMesh | None) -> int:
    """How many parts of the batch run side by side."""
    return 1 if mesh is None else mesh.shape["data"]


def place(letters: str, mesh: Mesh | None):
    """The NamedSharding of an array written `letters`; without a mesh, the default device."""
    if mesh is None:
        return jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return NamedSharding(mesh, spec(letters))


def in_force() -> AbstractMesh | None:
    """The mesh that the program being traced is for (`jax.set_mesh`)."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty else mesh


def per_shard(function: Callable, inputs: tuple[str, ...], outputs: Any) -> Callable:
    """`function` run on each device's own part of its arguments, written `inputs` (a letter string
    each; an argument may be None), and giving parts of results written `outputs` (a string or a
    tuple of them). For kernels, which the partitioner cannot split. Without a mesh, the function.
    """
    mesh = in_force()
    if mesh is None or mesh.size == 1:
        return function
    places = tuple(spec(letters) for letters in inputs)
    return jax.shard_map(
        function, in_specs=places, out_specs=jax.tree.map(spec, outputs), check_vma=False
    )


def copy_index() -> jax.Array:
    """Inside `per_shard`: which copy of the model this device belongs to."""
    return jax.lax.axis_index("data")


def sum_over_copies(x: jax.Array) -> jax.Array:
    """Inside `per_shard`: the sum over the copies of the model."""
    return jax.lax.psum(x, "data")


def constrain(x: jax.Array, letters: str) -> jax.Array:
    """Pin a traced activation to its letters' axes, where a mesh is in force (`jax.set_mesh`)."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, spec(letters))
