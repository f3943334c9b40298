"""Strict everywhere: no silent promotion of dtypes or ranks, and fresh random inputs whose seed a
failure shows.
"""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxinfer import compile_cache

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session", autouse=True)
def programs(tmp_path_factory) -> Iterator[Path]:
    """Compiled programs are shared by the tests of one worker and the processes that they start, for
    this run. On a CPU LLVM does not polish them, since compiling takes far longer than running;
    JAX_DISABLE_MOST_OPTIMIZATIONS=0 tests the code that users run.
    """
    folder = compile_cache.enable(tmp_path_factory.mktemp("programs"))
    children = {
        "JAX_COMPILATION_CACHE_DIR": str(folder),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    if "JAX_DISABLE_MOST_OPTIMIZATIONS" not in os.environ and jax.default_backend() == "cpu":
        jax.config.update("jax_disable_most_optimizations", True)
        children["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in children.items():
            patch.setenv(name, value)
        yield folder


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
