"""The next token of each row and its log-probability.

A draw is argmax(logits + Gumbel noise); the noise comes from fold_in(request key, position), so it
depends neither on the row of the batch nor on its neighbours. Raw log-probabilities are those of
the model's logits before anything here; processed ones those after every edit, temperature and
filter (-inf where masked).
"""

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from jaxinfer.sampler.history import History
from jaxinfer.sampler.mask import Mask, masking
from jaxinfer.sampler.penalties import Stage, apply, edits
from jaxinfer.sampler.settings import Sampling
from jaxinfer.sampler.warpers import warpers


@struct.dataclass
class Sampled:
    """token: [B] int32. The others are None where `top_n` was:

    logprob: [B] float32, of the token. top_ids: [B, top_n] int32, the likeliest tokens in order,
    with top_logprobs [B, top_n] float32.
    """

    token: jax.Array
    logprob: jax.Array | None = None
    top_ids: jax.Array | None = None
    top_logprobs: jax.Array | None = None


def sample(
    logits: jax.Array,
    sampling: Sampling,
    history: History | None,
    positions: jax.Array,
    *,
    mask: Mask | None = None,
    top_n: int | None = None,
) -> Sampled:
    """Draws one token a row.

    A batch of greedy rows without edits costs an argmax; every other stage runs only when some row
    needs it. Greedy rows take the first of the largest edited logits, unscaled and unfiltered. A
    row whose logits hold NaN gets some token and disturbs no other.

    Args:
      logits: [B, V] of any float type, processed as float32.
      sampling: B rows.
      history: B rows, or None when no row needs one (`needs_history`): penalties, bad words and
        min_tokens are then without effect.
      positions: [B] int32, the position in its sequence that each token will take.
      mask: what each row may take (greedy rows too), or None where every row may take anything.
      top_n: static; None leaves log-probabilities out.
    """
    logits = logits.astype(jnp.float32)
    edit = _edits(logits, sampling, history, mask)
    drawn = sampling.temperature > 0
    touched = drawn
    for stage in edit:
        touched = touched | stage.needed

    def plain(logits: jax.Array) -> Sampled:
        return _report(_argmax(logits), logits, logits, sampling, top_n)

    def full(logits: jax.Array) -> Sampled:
        processed = apply([*edit, *warpers(sampling, logits.shape[1])], logits)
        token = lax.cond(
            jnp.any(drawn),
            lambda x: _argmax(jnp.where(drawn[:, None], x + _noise(sampling, positions, x), x)),
            _argmax,
            processed,
        )
        return _report(token, logits, processed, sampling, top_n)

    return lax.cond(jnp.any(touched), full, plain, logits)


def process(
    logits: jax.Array, sampling: Sampling, history: History | None, mask: Mask | None = None
) -> jax.Array:
    """[B, V] float32: what `sample` draws from; -inf is masked. Arguments as there."""
    logits = logits.astype(jnp.float32)
    edit = _edits(logits, sampling, history, mask)
    return apply([*edit, *warpers(sampling, logits.shape[1])], logits)


def _edits(
    logits: jax.Array, sampling: Sampling, history: History | None, mask: Mask | None
) -> list[Stage]:
    """What is done to logits before the temperature; the mask comes last."""
    return [*edits(sampling, history), *([] if mask is None else masking(mask, logits))]


def position_keys(sampling: Sampling, positions: jax.Array) -> jax.Array:
    """[B] PRNG keys: of each row for its position in `positions` [B] int32."""
    keys = jax.random.wrap_key_data(sampling.key, impl="threefry2x32")
    return jax.vmap(jax.random.fold_in)(keys, positions)


def _argmax(logits: jax.Array) -> jax.Array:
    """[B] int32: the first of the largest; V - 1 in a row with NaN.

    Two plain reductions: on CPU they take a tenth of the time of jnp.argmax, which reduces pairs.
    """
    V = logits.shape[1]
    largest = logits == jnp.max(logits, axis=1, keepdims=True)
    places = jnp.where(largest, jnp.arange(V, dtype=jnp.int32)[None, :], V - 1)
    return jnp.min(places, axis=1)


def _noise(sampling: Sampling, positions: jax.Array, logits: jax.Array) -> jax.Array:
    """Standard Gumbel noise [B, V], finite, from 32 bits each.

    Large noise comes from small uniforms, which float32 resolves down to 2**-33: even tokens of
    probability 1e-9 are drawn as often as they should be, and ties are rare at any V (23 bits, the
    default of jax.random.gumbel, would tie in 1% of the draws at V = 128k).
    """
    V = logits.shape[1]
    keys = position_keys(sampling, positions)
    bits = jax.vmap(lambda key: jax.random.bits(key, (V,), jnp.uint32))(keys)
    uniform = (bits.astype(jnp.float32) + 0.5) * jnp.float32(2**-32)
    return -jnp.log(-jnp.log1p(-jnp.minimum(uniform, jnp.float32(1 - 2**-24))))


def _report(
    token: jax.Array,
    logits: jax.Array,
    processed: jax.Array,
    sampling: Sampling,
    top_n: int | None,
) -> Sampled:
    if top_n is None:
        return Sampled(token)
    scores = jnp.where(sampling.raw_logprobs[:, None], logits, processed)
    total = jax.nn.logsumexp(scores, axis=1)
    places = jnp.arange(scores.shape[1], dtype=jnp.int32)[None, :]
    chosen = jnp.sum(jnp.where(places == token[:, None], scores, 0.0), axis=1)
    top, top_ids = lax.top_k(scores, top_n)
    return Sampled(token, chosen - total, top_ids, top - total[:, None])
