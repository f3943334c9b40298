"""Reinforcement learning in one jitted update: sample answers, score them, follow the policy
gradient.

The log-probabilities of the sampled tokens equal those that the scoring pass gives them, so the
gradient is that of the policy that was sampled from. The reward is a toy: the share of tokens from
the lower half of the vocabulary.

python examples/rollout_in_jit.py [--model FOLDER|ORG/NAME] [--steps N]
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxinfer

BATCH, NEW_TOKENS = 16, 24
OPTIMIZER = optax.sgd(0.3)
PROMPT = "The purpose of this module is to"


@functools.partial(jax.jit, static_argnames="config")
def update(params, state, tokens, sampling, config):
    """One step for prompts [B, T]: (params, optimizer state, mean reward, largest gap of the
    log-probabilities).
    """
    B, T = tokens.shape
    rollout = jaxinfer.generate(
        params, config, tokens, sampling=sampling, max_new_tokens=NEW_TOKENS
    )
    answered = jnp.arange(NEW_TOKENS)[None, :] < rollout.lengths[:, None]
    low = answered & (rollout.tokens < config.vocab_size // 2)
    reward = low.sum(axis=1) / rollout.lengths
    advantage = reward - reward.mean()

    def loss(params):
        whole = jnp.concatenate([tokens, rollout.tokens], axis=1)
        logprobs = jaxinfer.score(params, config, whole, T + rollout.lengths)[:, T:]
        return -(advantage[:, None] * logprobs).sum() / B, logprobs

    gradient, logprobs = jax.grad(loss, has_aux=True)(params)
    gap = jnp.abs(jnp.where(answered, logprobs - rollout.logprobs, 0.0)).max()
    change, state = OPTIMIZER.update(gradient, state)
    return optax.apply_updates(params, change), state, reward.mean(), gap


def main(name: str | None = None, steps: int = 8) -> list[tuple[float, float]]:
    model = jaxinfer.load(name, dtype="float32")
    params, config = model.params, model.config
    tokens = np.asarray([model.encode(PROMPT)] * BATCH, np.int32)
    state, rng, found = OPTIMIZER.init(params), np.random.default_rng(1), []
    for step in range(steps):
        asked = [
            jaxinfer.SamplingParams()
        ] * BATCH  # the model's own distribution; each row gets a seed from rng
        sampling = jaxinfer.pack(asked, config.vocab_size, model.tokenizer.eos_ids, rng=rng)
        params, state, reward, gap = update(params, state, tokens, sampling, config)
        found.append((float(reward), float(gap)))
        print(
            f"step {step}: reward {reward:.3f}, log-probabilities of roll-out and scoring differ by {gap:.1e} at most"
        )
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model")
    parser.add_argument("--steps", type=int, default=8)
    options = parser.parse_args()
    main(options.model, options.steps)
