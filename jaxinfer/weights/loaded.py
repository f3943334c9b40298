"""What loading gives, and in which dtype."""

from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxinfer.config import ModelConfig
from jaxinfer.models.decoder import Params
from jaxinfer.quantize import QTensor
from pallas_kernels.backend import platform

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Loaded:
    """A model read from `folder`."""

    params: Params
    config: ModelConfig
    folder: Path


def as_laid_out(params: Params, config: ModelConfig) -> Params:
    """The parameters as `decoder.layout` has them: what `decoder.prepare` added is taken away."""
    embed, head, dtype = params.embed, params.unembed, params.norm.scale.dtype
    if isinstance(embed, QTensor) or embed.dtype == dtype:
        return params
    if config.tied and head is not None:
        return params.replace(embed=head, unembed=None)
    return params.replace(embed=embed.astype(dtype))


def check_dtype(dtype) -> np.dtype | None:
    """A dtype by name or as jnp has it -> numpy's; None stays. ValueError unless it is one of
    DTYPES.
    """
    if dtype is None:
        return None
    try:
        found = jnp.dtype(dtype)
    except TypeError as error:
        raise ValueError(f"dtype needs one of {', '.join(DTYPES)}, got {dtype!r}") from error
    if found.name not in DTYPES:
        raise ValueError(f"dtype needs one of {', '.join(DTYPES)}, got {found.name!r}")
    return found


def default_dtype(stored: np.dtype) -> np.dtype:
    """float32 on CPU; elsewhere the checkpoint's own, with bfloat16 for 8-bit floats and float32
    for float64.
    """
    if platform() == "cpu" or stored == np.float64:
        return np.dtype(np.float32)
    return stored if stored.itemsize > 1 else np.dtype(jnp.bfloat16)
