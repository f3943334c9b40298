"""Train a model on a token stream, within a number of steps or of minutes.

The optimizer is Muon for the layers' matrices and Adam for the rest (`--optimizer adamw` is there
to compare with). The learning rate warms up over the first 2% of the run, stays, and falls linearly
to zero over the last `--decay` of it; with `--minutes` the length of the run is estimated from the
measured speed, so that the schedule ends with the time. With `--state` the training state is saved
as it goes, and the same command continues a run that was cut off (`--stop_after_minutes`). Log
lines are JSON.

    python -m examples.training.train --tokens tokens --to checkpoints/pico-20m --minutes 14
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from examples.training import checkpoint, transformer
from examples.training.tokenizer import KINDS
from examples.training.transformer import Params, Shape

# (parameters, frozen parameters of a teacher or None, windows [B, T+1]) -> nats a token
Loss = Callable[[Params, Any, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to train. Give `steps` or `minutes`; `batch` counts sequences of `context` tokens."""

    steps: int | None = None
    minutes: float | None = None
    stop_after_minutes: float = math.inf
    batch: int = 128
    context: int = 1024
    learning_rate: float = 4e-3
    embedding_rate: float = 1.0
    weight_decay: float = 0.05
    optimizer: str = "muon"
    warmup: float = 0.02
    decay: float = 0.6
    dtype: str = "bfloat16"
    seed: int = 0
    log_every: int = 20
    eval_minutes: float = 1.5
    unroll: int = 1
    state: pathlib.Path | None = None


def optimizer(settings: Settings) -> optax.GradientTransformation:
    """Updates for a learning rate of one: `train_step` multiplies them by the schedule's value."""
    decay = settings.weight_decay
    numbers = optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)
    matrices = dict.fromkeys(transformer.MATRICES, numbers) | dict.fromkeys(transformer.OTHERS)
    decayed = {name: value is not None for name, value in matrices.items()}
    if settings.optimizer == "adamw":
        inner = optax.adamw(1.0, b1=0.9, b2=0.95, weight_decay=decay, mask=decayed)
    elif settings.optimizer == "muon":
        inner = optax.contrib.muon(
            1.0,
            weight_decay=decay,
            adam_b1=0.9,
            adam_b2=0.95,
            adam_learning_rate=settings.embedding_rate,
            muon_weight_dimension_numbers=matrices,
            consistent_rms=0.2,
        )
    else:
        raise ValueError(f"optimizer must be 'muon' or 'adamw', got {settings.optimizer!r}")
    return optax.chain(optax.clip_by_global_norm(1.0), inner)


def schedule(progress: float, warmup: float, decay: float) -> float:
    """Fraction of the peak learning rate at `progress` in [0, 1]: warm-up, flat, linear to zero."""
    return max(0.0, min(1.0, progress / warmup, (1.0 - progress) / decay))


def windows(tokens: jax.Array, starts: jax.Array, context: int) -> jax.Array:
    """int32[B, context + 1]: the tokens from each of `starts` [B] on."""
    slices = jax.vmap(lambda s: jax.lax.dynamic_slice(tokens, (s,), (context + 1,)))(starts)
    return slices.astype(jnp.int32)


def shuffled_starts(
    size: int, context: int, batch: int, seed: int, skip: int
) -> Iterator[np.ndarray]:
    """Batches of window starts; an epoch visits every token once, at a fresh phase and order."""
    epoch = 0
    while True:
        rng = np.random.default_rng((seed, epoch))
        starts = np.arange(rng.integers(context), size - context - 1, context, dtype=np.int32)
        rng.shuffle(starts)
        if len(starts) < batch:
            starts = np.resize(starts, batch)
        for first in range(0, len(starts) - batch + 1, batch):
            if skip > 0:
                skip -= 1
            else:
                yield starts[first : first + batch]
        epoch += 1


def language_model_loss(shape: Shape, dtype: str, unroll: int = 1) -> Loss:
    """Mean cross-entropy of the next token."""

    def loss(params: Params, frozen: Any, batch: jax.Array) -> jax.Array:
        del frozen
        cast = transformer.compute_copy(params, jnp.dtype(dtype))
        scores = transformer.logits(cast, shape, batch[:, :-1], unroll)
        return jnp.mean(transformer.cross_entropy(scores, batch[:, 1:]))

    return loss


def make_steps(loss: Loss, held_out: Loss, settings: Settings) -> tuple[Callable, Callable]:
    """(train_step, eval_step), jitted; the state is donated."""
    update = optimizer(settings).update

    @functools.partial(jax.jit, donate_argnums=(0,))
    def train_step(
        state: Any, frozen: Any, tokens: jax.Array, starts: jax.Array, rate: jax.Array
    ) -> Any:
        params, moments = state
        batch = windows(tokens, starts, settings.context)
        value, gradients = jax.value_and_grad(loss)(params, frozen, batch)
        # optax mixes dtypes and ranks in its own arithmetic: allow it there, also in a strict
        # program
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            updates, moments = update(gradients, moments, params)
        params = {name: params[name] + rate * updates[name] for name in params}
        return (params, moments), value

    @jax.jit
    def eval_step(params: Params, frozen: Any, tokens: jax.Array, starts: jax.Array) -> jax.Array:
        return held_out(params, frozen, windows(tokens, starts, settings.context))

    return train_step, eval_step


def held_out_losses(
    eval_step: Callable, params: Params, frozen: Any, streams: dict, settings: Settings
) -> dict[str, float]:
    """Mean held-out loss by stream, over windows that do not overlap."""
    losses = {}
    for kind, tokens in streams.items():
        starts = np.arange(0, len(tokens) - settings.context - 1, settings.context, dtype=np.int32)
        batches = [starts[i : i + 32] for i in range(0, len(starts) - 31, 32)] or [starts]
        values = [eval_step(params, frozen, tokens, jnp.asarray(b)) for b in batches]
        losses[kind] = round(float(np.mean(jax.device_get(values))), 4)
    return losses


class Clock:
    """How far a run is: steps done, seconds trained, and the steps it will take in all."""

    def __init__(self, settings: Settings, step: int = 0, seconds: float = 0.0) -> None:
        self.steps, self.minutes = settings.steps, settings.minutes
        if (self.steps is None) == (self.minutes is None):
            raise ValueError(f"give steps or minutes, got {self.steps=} and {self.minutes=}")
        self.step, self.seconds, self.recorded_step = step, seconds, step
        self.pace = seconds / step if step else None  # seconds a step, smoothed

    def record(self, elapsed: float, steps: int) -> None:
        """The last `steps` steps took `elapsed` seconds."""
        self.recorded_step = self.step
        self.seconds += elapsed
        self.pace = 0.8 * (self.pace or elapsed / steps) + 0.2 * elapsed / steps

    def progress(self) -> float:
        """The part of the run that is over after the next step."""
        if self.steps is not None:
            return min(1.0, (self.step + 1) / self.steps)
        left = max(0.0, 60 * self.minutes - self.seconds) / self.pace if self.pace else 10_000
        return min(1.0, (self.step + 1) / max(1.0, self.recorded_step + left))

    def done(self) -> bool:
        """Whether the run is over."""
        if self.steps is not None:
            return self.step >= self.steps
        return self.seconds >= 60 * self.minutes


def run(
    params: Params,
    streams: dict[str, np.ndarray],
    loss: Loss,
    held_out: Loss,
    settings: Settings,
    frozen: Any = None,
    report: Callable[[dict], None] = lambda line: print(json.dumps(line), flush=True),
    keep: Callable[[Params], None] = lambda params: None,
) -> Params:
    """Train `params` on streams["train"]; returns the parameters at the end of the run or call.

    `keep` is called with the parameters whenever the sum of the held-out losses is the lowest yet.
    """
    short = {
        kind: len(value) for kind, value in streams.items() if len(value) < settings.context + 2
    }
    if short:
        raise ValueError(
            f"a stream needs over {settings.context + 1} tokens, got {short}: add text"
        )
    began = time.monotonic()
    train_step, eval_step = make_steps(loss, held_out, settings)
    state = (params, optimizer(settings).init(params))
    meta = {"step": 0, "seconds": 0.0, "best": math.inf}
    if settings.state is not None and settings.state.exists():
        state, meta = checkpoint.restore_state(settings.state, state)
    clock, best = Clock(settings, meta["step"], meta["seconds"]), meta["best"]
    tokens = jax.device_put(streams["train"])
    held = {kind: jax.device_put(value) for kind, value in streams.items() if kind != "train"}
    starts = shuffled_starts(
        len(tokens), settings.context, settings.batch, settings.seed, skip=clock.step
    )
    next_eval, compiled = clock.seconds + 60 * settings.eval_minutes, False
    while True:
        tick, first = time.monotonic(), clock.step
        chunk = settings.log_every if compiled else 2
        while clock.step < first + chunk and not (settings.steps and clock.done()):
            rate = settings.learning_rate * schedule(
                clock.progress(), settings.warmup, settings.decay
            )
            batch = jnp.asarray(next(starts))
            state, value = train_step(state, frozen, tokens, batch, jnp.float32(rate))
            clock.step += 1
        value, steps = float(value), clock.step - first
        elapsed = time.monotonic() - tick
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss is {value} at {clock.step=}: lower the rate")
        line = {"step": clock.step, "loss": round(value, 4), "rate": round(rate, 6)}
        if compiled:
            clock.record(elapsed, steps)
            speed = round(settings.batch * settings.context * steps / elapsed)
            report(line | {"tokens_per_s": speed, "progress": round(clock.progress(), 4)})
        else:
            report(line | {"compile_s": round(elapsed, 1)})
            compiled = True
        stop = clock.done() or time.monotonic() - began >= 60 * settings.stop_after_minutes
        if stop or clock.seconds >= next_eval:
            next_eval = clock.seconds + 60 * settings.eval_minutes
            losses = held_out_losses(eval_step, state[0], frozen, held, settings)
            report({"step": clock.step, "seconds": round(clock.seconds, 1), "held_out": losses})
            if sum(losses.values()) < best:
                best = sum(losses.values())
                keep(state[0])
            if settings.state is not None:
                meta = {"step": clock.step, "seconds": clock.seconds, "best": best}
                checkpoint.save_state(settings.state, state, meta)
        if stop:
            return state[0]


def read_streams(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """{"train", and one held-out stream a kind}: uint16 arrays that `tokenizer.build` wrote."""
    streams = {"train": np.load(folder / "train.npy")}
    return streams | {kind: np.load(folder / f"held_out_{kind}.npy") for kind in KINDS}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """One flag for every field of Settings."""
    kinds = {"steps": int, "minutes": float, "state": pathlib.Path}
    for field in dataclasses.fields(Settings):
        kind = kinds.get(field.name) or type(field.default)
        parser.add_argument(f"--{field.name}", type=kind, default=field.default)


def read_flags(arguments: argparse.Namespace) -> Settings:
    """The Settings that the flags state."""
    return Settings(**{f.name: getattr(arguments, f.name) for f in dataclasses.fields(Settings)})


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=pathlib.Path, required=True)
    parser.add_argument("--to", type=pathlib.Path, required=True)
    parser.add_argument("--layers", type=int, default=transformer.TARGET.num_layers)
    parser.add_argument("--start", type=pathlib.Path, help="exported checkpoint to start from")
    add_flags(parser)
    arguments = parser.parse_args()
    settings = read_flags(arguments)
    streams = read_streams(arguments.tokens)
    size = json.loads((arguments.tokens / "meta.json").read_text())["vocab_size"]
    shape = dataclasses.replace(
        transformer.TARGET, vocab_size=size, num_layers=arguments.layers, context=settings.context
    )
    params = transformer.init(jax.random.key(settings.seed), shape)
    if arguments.start is not None:
        shape, params = checkpoint.load(arguments.start)
    loss = language_model_loss(shape, settings.dtype, settings.unroll)
    save = functools.partial(
        checkpoint.export,
        shape=shape,
        tokenizer=arguments.tokens / "tokenizer.json",
        folder=arguments.to,
    )
    run(params, streams, loss, loss, settings, keep=save)


if __name__ == "__main__":
    main()
