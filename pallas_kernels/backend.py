"""The only look at the device: which platform a traced program will run on."""

import jax


def platform() -> str:
    """ "cpu", "gpu" or "tpu": that of the mesh in force (also an ahead-of-time topology), else
    jax's default.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is None:
        return jax.default_backend()
    kind = device.device_kind.lower()
    return "cpu" if kind == "cpu" else "tpu" if kind.startswith("tpu") else "gpu"
