"""Distances of two distributions beside numpy in float64, and the blocks in which a text is read."""

import numpy as np
import pytest

import jaxinfer
from jaxinfer.quality import Setting, Side, distances
from tests import tiny


def slow(reference, candidate, following) -> dict[str, np.ndarray]:
    """Every field of Distances in float64, a position at a time."""
    rows: dict[str, list[float]] = {}
    for a, b, token in zip(
        reference.astype(np.float64), candidate.astype(np.float64), following, strict=True
    ):
        log_p, log_q = (x - x.max() - np.log(np.exp(x - x.max()).sum()) for x in (a, b))
        p, q = np.exp(log_p), np.exp(log_q)
        top = [set(np.argsort(-x, kind="stable")[: min(5, len(x))]) for x in (a, b)]
        row = {
            "reference": log_p[token],
            "candidate": log_q[token],
            "kl": float((p * (log_p - log_q)).sum()),
            "same_top": float(a.argmax() == b.argmax()),
            "top_overlap": len(top[0] & top[1]) / len(top[0]),
            "accepted": np.minimum(p, q).sum(),
        }
        for name, value in row.items():
            rows.setdefault(name, []).append(value)
    return {name: np.asarray(values) for name, values in rows.items()}


def check(found: distances.Distances, expected: dict[str, np.ndarray], atol: float = 2e-5):
    for name, values in expected.items():
        np.testing.assert_allclose(getattr(found, name), values, atol=atol, err_msg=name)


@pytest.mark.parametrize("vocab", [3, 5, 37])
def test_between_is_numpys(rng, vocab):
    reference = 3 * rng.standard_normal((29, vocab)).astype(np.float32)
    candidate = reference + rng.standard_normal((29, vocab)).astype(np.float32)
    following = rng.integers(0, vocab, 29).astype(np.int32)
    check(distances.between(reference, candidate, following), slow(reference, candidate, following))


def test_between_equal_logits_is_nothing_even_where_a_token_is_impossible(rng):
    logits = rng.standard_normal((9, 20)).astype(np.float32)
    logits[:, 4] = -1e9
    found = distances.between(logits, logits, np.zeros(9, np.int32))
    assert (np.asarray(found.kl) == 0).all()
    assert (np.asarray(found.same_top) == 1).all()
    assert (np.asarray(found.top_overlap) == 1).all()
    np.testing.assert_allclose(found.accepted, 1, rtol=1e-6)


@pytest.mark.parametrize("first", [1, 6, 22])
def test_a_text_is_read_in_blocks_and_none_is_missed(rng, seed, monkeypatch, first):
    config = tiny.config()
    models = [jaxinfer.Model(tiny.params(config, seed + i), config) for i in (0, 1)]
    (ids,) = tiny.prompts(rng, [23])
    held, between = [], distances.between
    monkeypatch.setattr(distances, "BLOCK", 8)
    monkeypatch.setattr(
        distances, "between", lambda a, b, n: (held.append(a.shape), between(a, b, n))[1]
    )
    found = distances.read(
        *(distances.Reader(Side(Setting(), model)) for model in models), ids, first
    )
    tokens = np.asarray([ids], np.int32)
    logits = [np.asarray(jaxinfer.logits(m.params, config, tokens))[0] for m in models]
    places = slice(first - 1, 22)
    check(found, slow(logits[0][places], logits[1][places], ids[first:]), atol=1e-3)
    assert len(found.kl) == 23 - first
    assert set(held) == {(8, config.vocab_size)}  # never the whole text
