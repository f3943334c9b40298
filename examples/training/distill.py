"""Distil a draft model from a trained target: same tokenizer, the target's token distribution.

The loss is KL(target || draft) over the whole vocabulary, optionally mixed with the cross-entropy
of the text (`--mix`). A draft that is close to its target in this sense has its proposals accepted
often in speculative sampling.

    python -m examples.training.distill --tokens tokens --target checkpoints/pico-20m \
        --to checkpoints/pico-2m-draft --minutes 4
"""

from __future__ import annotations

import argparse
import functools
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from examples.training import checkpoint, train, transformer
from examples.training.transformer import Params, Shape


def divergence(target: jax.Array, draft: jax.Array) -> jax.Array:
    """KL(target || draft) in nats, float32[B, T], from logits [B, T, V]."""
    target, draft = jax.nn.log_softmax(target), jax.nn.log_softmax(draft)
    return jnp.sum(jnp.exp(target) * (target - draft), axis=-1)


def distillation_loss(
    target: Shape, draft: Shape, dtype: str, mix: float = 0.0, unroll: int = 1
) -> train.Loss:
    """(1 - mix) * KL(target || draft) + mix * cross-entropy; `frozen`: the target's weights."""

    def loss(params: Params, frozen: Any, batch: jax.Array) -> jax.Array:
        tokens, targets = batch[:, :-1], batch[:, 1:]
        ours = transformer.compute_copy(params, jnp.dtype(dtype))
        scores = transformer.logits(ours, draft, tokens)
        theirs = jax.lax.stop_gradient(transformer.logits(frozen, target, tokens, unroll))
        value = jnp.mean(divergence(theirs, scores))
        if not mix:
            return value
        return (1 - mix) * value + mix * jnp.mean(transformer.cross_entropy(scores, targets))

    return loss


def acceptance(target: jax.Array, draft: jax.Array) -> jax.Array:
    """Chance that speculative sampling at temperature 1 accepts a draft token: float32[B, T]."""
    return jnp.sum(jnp.minimum(jax.nn.softmax(target), jax.nn.softmax(draft)), axis=-1)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=pathlib.Path, required=True)
    parser.add_argument("--target", type=pathlib.Path, required=True)
    parser.add_argument("--to", type=pathlib.Path, required=True)
    parser.add_argument("--mix", type=float, default=0.0)
    train.add_flags(parser)
    arguments = parser.parse_args()
    settings = train.read_flags(arguments)
    target, frozen = checkpoint.load(arguments.target)
    frozen = transformer.compute_copy(frozen, jnp.dtype(settings.dtype))
    draft = transformer.draft_of(target)
    params = transformer.init(jax.random.key(settings.seed), draft)
    save = functools.partial(
        checkpoint.export,
        shape=draft,
        tokenizer=arguments.target / "tokenizer.json",
        folder=arguments.to,
    )
    print(json.dumps({"parameters": draft.num_parameters()}))
    train.run(
        params,
        train.read_streams(arguments.tokens),
        distillation_loss(target, draft, settings.dtype, arguments.mix, settings.unroll),
        distillation_loss(target, draft, settings.dtype, unroll=settings.unroll),
        settings,
        frozen=frozen,
        keep=save,
    )


if __name__ == "__main__":
    main()
