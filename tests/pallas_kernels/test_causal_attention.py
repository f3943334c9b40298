"""Every backend of causal attention equals its reference on fresh inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.causal_attention import BACKENDS, causal_attention, xla


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("block", [4, 512])
def test_xla_equals_the_reference(rng, monkeypatch, window, softcap, block):
    monkeypatch.setattr(xla, "BLOCK", block)
    B, T, N, K, H = 3, 11, 6, 2, 8
    q = jnp.asarray(rng.normal(size=(B, T, N, H)), jnp.float32)
    k, v = (jnp.asarray(rng.normal(size=(B, T, K, H)), jnp.float32) for _ in "kv")
    lengths = jnp.asarray([T, 5, 1], jnp.int32)
    beyond = (np.arange(T) >= np.asarray(lengths)[:, None])[:, :, None, None]
    k, v = (
        jnp.where(beyond, jnp.nan, x) for x in (k, v)
    )  # what lies past a length must not matter
    rules = dict(scale=0.3, window=window, softcap=softcap)
    expected = causal_attention(q, jnp.nan_to_num(k), v, lengths, **rules, backend="reference")
    found = causal_attention(q, k, v, lengths, **rules, backend="xla")
    real = ~np.broadcast_to(beyond, expected.shape)
    np.testing.assert_allclose(found[real], expected[real], rtol=1e-5, atol=1e-5)
    assert np.isfinite(found).all()


def test_gradients_equal_those_of_the_reference(rng, monkeypatch):
    monkeypatch.setattr(xla, "BLOCK", 4)
    q = jnp.asarray(rng.normal(size=(2, 9, 4, 8)), jnp.float32)
    k, v = (jnp.asarray(rng.normal(size=(2, 9, 2, 8)), jnp.float32) for _ in "kv")
    lengths = jnp.full((2,), 9, jnp.int32)

    def loss(backend, q, k, v):
        return (causal_attention(q, k, v, lengths, scale=0.3, backend=backend) ** 2).sum()

    for name in ("xla",):
        found, expected = (
            jax.grad(loss, argnums=(1, 2, 3))(b, q, k, v) for b in (name, "reference")
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected
        )


def test_a_named_backend_never_falls_back():
    q = jnp.zeros((1, 4, 2, 8), jnp.bfloat16)
    with pytest.raises(NotImplementedError, match="soft cap"):
        causal_attention(q, q, q, jnp.full((1,), 4), scale=1.0, softcap=1.0, backend="cudnn")


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"N a multiple of K.*\(1, 4, 3, 8\)"):
        causal_attention(
            jnp.zeros((1, 4, 3, 8)),
            jnp.zeros((1, 4, 2, 8)),
            jnp.zeros((1, 4, 2, 8)),
            None,
            scale=1.0,
        )


@pytest.mark.gpu
@pytest.mark.parametrize("backend", sorted(set(BACKENDS) - {"reference"}))
@pytest.mark.parametrize("window", [None, 100])
def test_backends_on_a_gpu(rng, backend, window):
    q = jnp.asarray(rng.normal(size=(2, 512, 8, 64)), jnp.bfloat16)
    k, v = (jnp.asarray(rng.normal(size=(2, 512, 2, 64)), jnp.bfloat16) for _ in "kv")
    lengths = jnp.asarray([512, 300], jnp.int32)
    expected = np.asarray(
        causal_attention(q, k, v, lengths, scale=0.125, window=window, backend="reference")
    )
    found = np.asarray(
        causal_attention(q, k, v, lengths, scale=0.125, window=window, backend=backend), np.float32
    )
    for row, length in enumerate(np.asarray(lengths)):
        error = np.linalg.norm(found[row, :length] - expected[row, :length]) / np.linalg.norm(
            expected[row, :length]
        )
        assert error < 1e-2
