"""GPTQ (Frantar et al. 2022): columns are rounded one after the other, and what each one loses is made
good by those that are left (algorithm 1, with the authors' act-order and static groups).
"""

import jax
import jax.numpy as jnp

from jaxinfer.quantize import grid

DAMP = 0.01  # of the mean diagonal, added to it (section 4, step 3)
MOST = 128  # columns whose corrections of the others are put off and applied together (step 2)


def factor(gram: jax.Array, damp: float = DAMP) -> jax.Array:
    """Upper U [in, in] with U^T U the inverse of the damped Hessian.

    A column that no activation reaches gets a diagonal of 1. The inverse itself is never formed:
    with H = M M^T, M upper (a Cholesky factor from the far end), U is M's inverse.
    """
    diagonal = jnp.diagonal(gram)
    dead = diagonal == 0
    filled = gram + jnp.diag(dead.astype(gram.dtype) + damp * diagonal.mean())
    lower = jnp.linalg.cholesky(filled[::-1, ::-1])
    upper = lower[::-1, ::-1]
    unit = jnp.eye(len(gram), dtype=gram.dtype)
    return jax.scipy.linalg.solve_triangular(upper, unit, lower=False)


def solve(
    w: jax.Array,
    gram: jax.Array,
    clipped: jax.Array,
    group: int | None,
    symmetric: bool = True,
    act_order: bool = True,
    damp: float = DAMP,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """w [out, in] float32, gram [in, in] = X^T X -> (numbers [out, in], scale, zero), float32.

    clipped [out, in]: the weights whose range the grids cover, w itself or with its largest cut.
    numbers: nibbles, and scale, zero [out, in / group]; with group None bytes -127 .. 127, scale
    [out] and no zero. act_order: columns go by falling diagonal of the Hessian, and the grids are
    those of `clipped` (static groups), so that groups stay neighbours. Otherwise
    each group's grid is that of the weights as corrected so far.
    """
    out, columns = w.shape
    diagonal = jnp.diagonal(gram)
    w = jnp.where(diagonal[None] == 0, 0.0, w)
    scale, zero = _grids(clipped, group, symmetric)
    order = jnp.argsort(-diagonal) if act_order else jnp.arange(columns)
    upper = factor(gram[order][:, order], damp)
    wide = [None if x is None else _spread(x, columns)[:, order] for x in (scale, zero)]
    step = group or next(n for n in range(min(MOST, columns), 0, -1) if columns % n == 0)
    fresh = group is not None and not act_order

    def block(b, state):
        rest, numbers, scales, zeros = state
        at = b * step
        part = jax.lax.dynamic_slice(rest, (0, at), (out, step))
        rows = jax.lax.dynamic_slice(upper, (at, 0), (step, columns))
        square = jax.lax.dynamic_slice(rows, (0, at), (step, step))
        if fresh:
            own, middle = grid.four_bit(part[:, None], symmetric)
            scales = _put(scales, jnp.broadcast_to(own, (out, step)), at)
            if middle is not None:
                zeros = _put(zeros, jnp.broadcast_to(middle, (out, step)), at)
        own = jax.lax.dynamic_slice(scales, (0, at), (out, step))
        middle = None if zeros is None else jax.lax.dynamic_slice(zeros, (0, at), (out, step))
        found, errors = _columns(part, square, own, middle, group)
        late = jnp.matmul(errors, rows, precision=jax.lax.Precision.HIGHEST)
        return rest - late, _put(numbers, found, at), scales, zeros

    state = (w[:, order], jnp.zeros_like(w), wide[0], wide[1])
    _, numbers, scales, zeros = jax.lax.fori_loop(0, columns // step, block, state)
    if fresh and group is not None:
        scale = scales[:, ::group]
        zero = None if zeros is None else zeros[:, ::group]
    back = jnp.argsort(order)
    return numbers[:, back], scale, zero


def _grids(w, group, symmetric):
    if group is None:
        return grid.eight_bit(w), None
    out, columns = w.shape
    return grid.four_bit(w.reshape(out, columns // group, group), symmetric)


def _spread(x, columns):
    """[out] or [out, groups] -> [out, columns]."""
    x = x[:, None] if x.ndim == 1 else x
    return jnp.repeat(x, columns // x.shape[1], axis=1)


def _put(whole, part, at):
    return jax.lax.dynamic_update_slice(whole, part, (0, at))


def _columns(part, square, scale, zero, group):
    """Round the columns of one block [out, n] in turn -> their numbers, and their errors over the
    factor's diagonal.
    """

    def one(i, state):
        part, numbers, errors = state
        column, own = part[:, i], scale[:, i]
        middle = None if zero is None else zero[:, i]
        if group is None:
            found = grid.bytes_of(column[:, None], own)[:, 0]
            held = found * own
        else:
            found = grid.nibbles(column[:, None], own, middle)[:, 0]
            held = grid.from_nibbles(found[:, None], own, middle)[:, 0]
        error = (column - held) / square[i, i]
        part = part - error[:, None] * square[i][None]
        return part, numbers.at[:, i].set(found), errors.at[:, i].set(error)

    empty = jnp.zeros_like(part)
    return jax.lax.fori_loop(0, part.shape[1], one, (part, empty, empty))[1:]
