"""Strict everywhere: no silent promotion of dtypes or ranks, and fresh random inputs whose seed a
failure shows.
"""

import secrets

import jax
import numpy as np
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def seed(record_property) -> int:
    """A fresh seed for this test; the report of a failure holds it."""
    value = secrets.randbits(32)
    record_property("seed", value)
    print(f"seed={value}")
    return value


@pytest.fixture
def rng(seed) -> np.random.Generator:
    return np.random.default_rng(seed)
