"""The only look at the device: which platform a traced program will run on."""

import jax


def platform() -> str:
    """"cpu", "gpu" or "tpu": that of the mesh in force (also an ahead-of-time topology), else jax's default."""
    mesh = jax.sharding.get_mesh()
    if not mesh.empty:
        return {"cuda": "gpu", "rocm": "gpu"}.get(mesh.devices.flat[0].platform, mesh.devices.flat[0].platform)
    return jax.default_backend()
