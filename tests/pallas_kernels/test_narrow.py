"""One byte an element: numpy's own rounding, every bit pattern, and what cannot be rounded."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from pallas_kernels.narrow import TOPS, narrowed, widened


def steps_of(values, dtype):
    """What values hold, in numpy."""
    return np.asarray(values).view(ml_dtypes.float8_e4m3fn if dtype == "uint8" else np.int8)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_every_vector_has_steps_of_its_own(rng, dtype):
    x = rng.normal(size=(50, 3, 64)).astype(np.float32)
    x *= 10.0 ** rng.integers(-30, 30, (50, 3, 1))
    values, scale = narrowed(jnp.asarray(x), dtype)
    assert (values.dtype, scale.shape) == (jnp.dtype(dtype), (50, 3))
    top = TOPS[np.dtype(dtype)]
    np.testing.assert_allclose(scale, np.abs(x).max(axis=2) / top, rtol=1e-6)
    steps = x / np.asarray(scale)[..., None]
    kept = np.rint(steps) if dtype == "int8" else steps.astype(ml_dtypes.float8_e4m3fn)
    found = steps_of(values, dtype).astype(np.float32)
    # a number between two steps may go either way
    assert np.mean(found != kept.astype(np.float32)) < 1e-3
    np.testing.assert_allclose(found, steps, rtol=0.0626, atol=0.5 if dtype == "int8" else 2**-9)
    np.testing.assert_array_equal(np.abs(found).max(axis=2), top)


def test_every_pattern_is_widened():
    bits = np.arange(256, dtype=np.uint8)
    expected = bits.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    np.testing.assert_array_equal(widened(jnp.asarray(bits), jnp.float32), expected)
    found = widened(jnp.asarray(bits), jnp.bfloat16).astype(jnp.float32)
    np.testing.assert_array_equal(found, expected)
    signed = bits.view(np.int8)
    np.testing.assert_array_equal(widened(jnp.asarray(signed), jnp.bfloat16), signed)


def test_what_cannot_be_rounded_is_not_hidden():
    x = jnp.asarray([[1.0, jnp.inf], [jnp.nan, 2.0], [0.0, 0.0], [1e-45, 0.0]])
    for dtype in ("int8", "uint8"):
        values, scale = narrowed(x, dtype)
        found = widened(values, jnp.float32) * scale[:, None]
        assert np.isfinite(found).any(axis=1).tolist() == [False, False, True, True]
        np.testing.assert_allclose(found[2:], 0.0, atol=1e-44)
