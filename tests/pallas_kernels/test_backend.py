"""What a program may be made of: said from outside, and traced anew where that changes."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import backend, dense


def test_a_program_is_traced_anew_where_kernels_are_not_allowed():
    traced = []

    @jax.jit
    def program(x):
        traced.append((backend.kernels(), backend.one_cpu()))
        return x + 1

    program(1.0)
    with backend.kernels_allowed(False):
        program(1.0)
        assert not backend.hopper()
        assert not backend.tpu()
    program(1.0)
    on_cpu = backend.platform() == "cpu"
    assert traced == [(True, on_cpu), (False, False)]


def test_plain_attention_is_the_same_but_for_rounding(rng):
    q = rng.normal(size=(2, 1, 2, 3, 16)).astype(np.float32)
    k, v = rng.normal(size=(2, 2, 2, 24, 16)).astype(np.float32)
    seen = jnp.asarray(rng.random((2, 1, 24)) < 0.7)

    def attend():
        run = jax.jit(lambda *x: dense.attend(*x, scale=0.25, softcap=None))
        return run.lower(q, k, v, seen).as_text(), np.asarray(run(q, k, v, seen))

    text, found = attend()
    with backend.kernels_allowed(False):
        plain_text, plain = attend()
    np.testing.assert_allclose(found, plain, rtol=1e-4, atol=1e-5)
    assert (text == plain_text) == (backend.platform() != "cpu")


def test_the_environment_says_no():
    code = "from pallas_kernels import backend; print(backend.kernels())"
    for value, expected in (("off", "False"), ("on", "True")):
        found = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PALLAS_KERNELS": value},
            capture_output=True,
            text=True,
            check=True,
        )
        assert found.stdout.strip() == expected
