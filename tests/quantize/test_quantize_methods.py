"""GPTQ, AWQ, SmoothQuant and LLM.int8() against slow numpy forms of their papers' formulas."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer.quantize import awq, gptq, grid, llm_int8, smoothquant


def text_like(rng, rows, columns):
    """Activations whose columns depend on each other and differ in size; a few are large."""
    mixed = rng.normal(size=(rows, columns)) @ rng.normal(size=(columns, columns))
    sizes = rng.uniform(0.2, 1.0, size=columns)
    sizes[rng.choice(columns, 3, replace=False)] *= 30
    return (mixed * sizes / columns**0.5).astype(np.float32)


def loss(x, w, held):
    return float(np.square(x.astype(np.float64) @ (np.asarray(held, np.float64) - w).T).sum())


def four_bit(w, symmetric):
    """One group [n] -> (scale, zero), each step in bfloat16 where it is kept so."""
    low, high = min(0.0, float(w.min())), max(0.0, float(w.max()))
    step = 2 * float(np.abs(w).max()) / 15 if symmetric else (high - low) / 15
    step = float(jnp.asarray(np.float32(step), jnp.bfloat16)) or 1.0
    zero = 8.0 if symmetric else float(np.clip(np.rint(np.float32(-low) / np.float32(step)), 0, 15))
    return step, zero


def round_four(w, group, symmetric):
    """w [out, in] to its grid, group by group."""
    held = np.zeros_like(w, dtype=np.float64)
    for o in range(w.shape[0]):
        for c in range(0, w.shape[1], group):
            part = w[o, c : c + group]
            step, zero = four_bit(part, symmetric)
            numbers = np.clip(np.rint(part / np.float32(step)) + zero, 0, 15)
            held[o, c : c + group] = (numbers - zero) * step
    return held


def column_by_column(w, gram, group, symmetric, act_order, damp):
    """Algorithm 1 of the paper without blocks: the inverse Hessian itself, in float64."""
    w = np.array(w, np.float64)
    hessian = np.array(gram, np.float64)
    dead = np.diag(hessian) == 0
    w[:, dead] = 0
    hessian += np.diag(dead + damp * np.diag(gram).mean())
    columns = w.shape[1]
    order = np.argsort(-np.diag(gram), kind="stable") if act_order else np.arange(columns)
    static = np.array(w, np.float32)
    inverse = np.linalg.inv(hessian[np.ix_(order, order)])
    held = np.zeros_like(w)
    grids = {}
    for i, c in enumerate(order):
        if not act_order and c % group == 0:
            static[:, c : c + group] = w[:, c : c + group]
        for o in range(w.shape[0]):
            key = (o, c // group)
            if key not in grids:
                first = c // group * group
                grids[key] = four_bit(static[o, first : first + group], symmetric)
            step, zero = grids[key]
            held[o, c] = (np.clip(np.rint(w[o, c] / step) + zero, 0, 15) - zero) * step
        gone = (w[:, c] - held[:, c]) / inverse[i, i]
        w[:, order[i:]] -= np.outer(gone, inverse[i, i:])
        rest = inverse[i:, i:]
        inverse[i:, i:] = rest - np.outer(rest[:, 0], rest[0]) / rest[0, 0]
    return held


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("act_order", [True, False])
def test_gptq_is_the_papers_algorithm_and_better_than_rounding(rng, symmetric, act_order):
    x, w = text_like(rng, 256, 32), rng.normal(size=(12, 32)).astype(np.float32)
    gram = x.T @ x
    numbers, scale, zero = gptq.solve(
        jnp.asarray(w), jnp.asarray(gram), jnp.asarray(w), 8, symmetric, act_order=act_order
    )
    assert numbers.min() >= 0
    assert numbers.max() <= 15
    grouped = np.asarray(numbers).reshape(12, 4, 8)
    held = grid.from_nibbles(
        grouped, *(None if a is None else np.asarray(a) for a in (scale, zero))
    )
    truth = column_by_column(w, gram, 8, symmetric, act_order, gptq.DAMP)
    plain = loss(x, w, round_four(w, 8, symmetric))
    slow, ours = loss(x, w, truth), loss(x, w, held.reshape(12, 32))
    assert slow < plain
    # one near tie, rounded the other way in float32, changes all that follows: most rows agree
    same = np.isclose(held.reshape(12, 32), truth, rtol=1e-4, atol=1e-5).all(axis=1)
    assert same.mean() >= 0.5
    assert ours == pytest.approx(slow, rel=0.25)
    np.testing.assert_array_equal(scale.astype(jnp.bfloat16).astype(jnp.float32), scale)


def test_grids_of_gptq_cover_what_they_are_given(rng):
    """One weight far beyond the others is better cut than let stretch its group's grid."""
    x, w = text_like(rng, 256, 16), rng.normal(size=(8, 16)).astype(np.float32)
    w[:, 5] *= 4
    gram = jnp.asarray(x.T @ x)
    cut = awq.clip(jnp.asarray(w), gram, 8, True)
    whole, less = (gptq.solve(jnp.asarray(w), gram, c, 8) for c in (jnp.asarray(w), cut))
    top = np.abs(np.asarray(cut)).reshape(8, 2, 8).max(axis=2)
    np.testing.assert_allclose(less[1], top * (2 / 15), rtol=2**-8)
    assert (np.asarray(less[1]) <= np.asarray(whole[1])).all()
    assert (np.asarray(less[1]) < np.asarray(whole[1])).any()


def test_gptq_in_eight_bits_and_with_columns_that_nothing_reaches(rng):
    x, w = text_like(rng, 128, 24), rng.normal(size=(6, 24)).astype(np.float32)
    x[:, 5] = 0
    w[2] = 0
    numbers, scale, zero = gptq.solve(jnp.asarray(w), jnp.asarray(x.T @ x), jnp.asarray(w), None)
    held = np.asarray(numbers) * np.asarray(scale)[:, None]
    assert zero is None
    assert np.isfinite(held).all()
    assert not held[:, 5].any()
    assert not held[2].any()
    nearest = np.asarray(grid.nearest(np.where(np.arange(24) == 5, np.float32(0), w), None))
    assert loss(x, w, held) < loss(x, w, nearest)


def test_the_factor_of_gptq(rng):
    x = text_like(rng, 64, 16)
    gram = jnp.asarray(x.T @ x)
    upper = np.asarray(gptq.factor(gram, 0.01), np.float64)
    damped = np.asarray(gram, np.float64) + 0.01 * np.diag(gram).mean() * np.eye(16)
    assert np.array_equal(upper, np.triu(upper))
    np.testing.assert_allclose(upper @ damped @ upper.T, np.eye(16), atol=1e-2)


@pytest.mark.parametrize("symmetric", [True, False])
def test_awq_finds_the_best_of_its_grid(rng, symmetric):
    x, w = text_like(rng, 256, 32), rng.normal(size=(12, 32)).astype(np.float32)
    mean = np.abs(x).mean(axis=0)
    costs = {}
    for step in range(awq.STEPS):
        s = np.maximum(mean ** np.float32(step / awq.STEPS), 1e-4).astype(np.float32)
        s = s / np.sqrt(s.max() * s.min())
        costs[step] = loss(x, w, round_four(w * s, 8, symmetric) / s)
    args = jnp.asarray(w), jnp.asarray(x.T @ x), jnp.asarray(mean), 8, symmetric
    s = np.asarray(awq.scales(*args))
    found = loss(x, w, round_four(w * s, 8, symmetric) / s)
    assert found == pytest.approx(min(costs.values()), rel=0.02)
    assert found < 0.9 * loss(x, w, round_four(w, 8, symmetric))


def test_awq_clips_each_group_as_is_best_for_it(rng):
    x = text_like(rng, 256, 16)
    w = rng.normal(size=(6, 16)).astype(np.float32)
    w[:, 3] *= 4  # one large weight spoils the grid of its group
    found = np.asarray(awq.clip(jnp.asarray(w), jnp.asarray(x.T @ x), 8, True))
    for o in range(6):
        for c in (0, 8):
            part, own = w[o, c : c + 8], x[:, c : c + 8]
            costs = []
            for step in range(awq.STEPS // 2):
                top = np.abs(part).max() * np.float32(1 - step / awq.STEPS)
                cut = np.clip(part, -top, top)
                held = round_four(cut[None], 8, True)
                costs.append(loss(own, part[None], held))
            ours = loss(own, part[None], round_four(found[None, o, c : c + 8], 8, True))
            assert ours <= min(costs) * 1.02 + 1e-6
    assert (np.abs(found) <= np.abs(w) + 1e-6).all()
    assert not np.array_equal(found, w)


def test_smoothing_is_equation_4(rng):
    top_x, top_w = (rng.uniform(0.1, 50, size=12).astype(np.float32) for _ in range(2))
    top_x[3], top_w[5] = 0, 0
    for alpha in (0.25, 0.5, 0.9):
        found = np.asarray(smoothquant.smoothing(jnp.asarray(top_x), jnp.asarray(top_w), alpha))
        for i in range(12):
            expected = 1.0 if i in (3, 5) else top_x[i] ** alpha / top_w[i] ** (1 - alpha)
            assert found[i] == pytest.approx(expected, rel=1e-4)


def test_outlier_columns(rng):
    top = rng.uniform(0, 5, size=64).astype(np.float32)
    top[[7, 40]] = 6.0, 80.0
    assert llm_int8.columns_from_activations(top).tolist() == [7, 40]
    assert llm_int8.columns_from_activations(top / 100).tolist() == [40]
    assert len(llm_int8.columns_from_activations(top * 100)) == 8
    energy = rng.uniform(0, 1, size=2048)
    best = sorted(sorted(range(2048), key=lambda i: -energy[i])[:16])
    assert llm_int8.columns_from_weights(energy).tolist() == best
    w = rng.normal(size=(5, 64)).astype(np.float32)
    values, scale, apart = llm_int8.split(w, np.array([7, 40]))
    assert not values[:, [7, 40]].any()
    np.testing.assert_array_equal(apart, w[:, [7, 40]])
    rest = np.delete(w - values * scale[:, None], [7, 40], axis=1)
    assert (np.abs(rest) <= scale[:, None] * 0.5001).all()
