"""Random traffic through an engine whose pool is far too small, and each answer beside the one given
alone. `python -m tests.engine.load 10000` soaks an engine and watches its memory.
"""

import dataclasses
import gc
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator

import jax.numpy as jnp
import numpy as np

from jaxinfer import sampler
from jaxinfer.engine import Engine
from jaxinfer.request import Request, SamplingParams
from jaxinfer.sampler import draw
from jaxinfer.scheduler import Sequence
from tests import oracle, tiny
from tests.engine.grammars import EOS, random_walk
from tests.engine.small import LIMITS, PAGE, TINY_POOL, check

MOST_REST, MOST_NEW = 24, 24
TIE = 2e-3  # between two tokens' scores: what another order of additions may change


@dataclasses.dataclass
class Arrival:
    """step: when it comes. leaves: how many steps later its caller hangs up, or None."""

    request: Request
    index: int
    step: int
    leaves: int | None
    priority: int
    salt: str


def traffic(rng, count: int) -> Iterator[Arrival]:
    """`count` requests: prompts of their own or with a beginning that several share."""
    openings = tiny.prompts(rng, rng.integers(8, 14, 3))
    step = 0
    for i in range(count):
        opening = openings[rng.integers(len(openings))] if rng.random() < 0.6 else ()
        (rest,) = tiny.prompts(rng, [int(rng.integers(1, MOST_REST))])
        params = settings(rng)
        grammar = random_walk(rng, int(rng.integers(1, MOST_NEW))) if rng.random() < 0.1 else None
        step += int(rng.poisson(1.2))
        yield Arrival(
            Request(str(i), opening + rest, params, grammar),
            index=int(rng.integers(params.n)),
            step=step,
            leaves=int(rng.integers(0, 12)) if rng.random() < 0.1 else None,
            priority=int(rng.integers(-1, 2)) if rng.random() < 0.2 else 0,
            salt="other" if rng.random() < 0.1 else "",
        )


def settings(rng) -> SamplingParams:
    """Greedy or seeded, with any of the other parameters."""
    some = rng.random(7) < 0.25
    fields = {
        "top_p": float(rng.uniform(0.5, 1)),
        "top_k": int(rng.integers(1, 40)),
        "min_p": float(rng.uniform(0, 0.2)),
        "repetition_penalty": float(rng.uniform(0.8, 1.5)),
        "frequency_penalty": float(rng.uniform(-1, 1)),
        "logit_bias": {int(rng.integers(tiny.VOCAB)): float(rng.uniform(-5, 5))},
        "stop_token_ids": tuple(rng.integers(2, tiny.VOCAB, 4).tolist()),
    }
    chosen = {name: fields[name] for name, take in zip(fields, some, strict=True) if take}
    greedy = rng.random() < 0.5
    return SamplingParams(
        temperature=0.0 if greedy else float(rng.uniform(0.3, 1.5)),
        seed=int(rng.integers(2**40)),
        n=int(rng.integers(1, 4)),
        max_new_tokens=int(rng.integers(1, MOST_NEW + 1)),
        **chosen,
    )


def make(params, config, **options) -> Engine:
    return Engine(
        params, config, LIMITS, page_size=PAGE, num_pages=TINY_POOL, eos_ids=(EOS,), **options
    )


def play(
    engine: Engine, arrivals: Iterator[Arrival], done: Callable[[Arrival, Sequence], None]
) -> int:
    """All of them through the engine, which is checked after every step: how many left early."""
    alive: dict[str, tuple[Arrival, Sequence]] = {}
    following, step, left = next(arrivals, None), 0, 0
    while following is not None or not engine.idle:
        while following is not None and (following.step <= step or engine.idle):
            one = following
            sequence = engine.add(
                one.request, index=one.index, priority=one.priority, salt=one.salt
            )
            one.step = step
            alive[one.request.id] = (one, sequence)
            following = next(arrivals, None)
        for token in engine.step():
            if token.finish_reason is not None:
                done(*alive.pop(token.request_id))
        check(engine)
        for arrival, sequence in list(alive.values()):
            if arrival.leaves is not None and step - arrival.step >= arrival.leaves:
                engine.abort(sequence)
                left += 1
                done(*alive.pop(arrival.request.id))
        step += 1
    assert not alive
    assert engine.stats.pages_used == 0
    return left


def alone(engine: Engine, arrival: Arrival) -> list[int]:
    """What the request is answered when there is no other."""
    sequence = engine.add(arrival.request, index=arrival.index)
    while not engine.idle:
        engine.step()
    return sequence.tokens


def nearly_tied(params, config, arrival: Arrival, known: list[int], one: int, other: int) -> bool:
    """Whether rounding may decide between two tokens after `known`."""
    request = arrival.request
    ids = [*request.prompt_token_ids, *known]
    logits = jnp.asarray(oracle.logits(params, config, ids)[-1:], jnp.float32)
    rows = sampler.pack([request.params], tiny.VOCAB, (EOS,), indices=[arrival.index])
    history = sampler.start_history(
        np.asarray([ids], np.int32),
        np.asarray([len(ids)], np.int32),
        tiny.VOCAB,
        np.asarray([len(request.prompt_token_ids)], np.int32),
    )
    scores = sampler.process(logits, rows, history)
    if request.params.temperature:
        scores = scores + draw._noise(rows, np.asarray([len(ids)], np.int32), scores)
    return abs(float(scores[0, one]) - float(scores[0, other])) < TIE


def resident() -> int:
    """Bytes of this process that are in memory now (Linux)."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def soak(count: int, seed: int) -> dict:
    """One row about `count` requests: memory at ten moments, and what the engine counted."""
    rng = np.random.default_rng(seed)
    config = tiny.config()
    engine = make(tiny.params(config, seed), config)
    compiled = engine.warm_up()
    sizes, finished = [], 0

    def done(arrival, sequence):
        nonlocal finished
        finished += 1
        if finished % max(1, count // 10) == 0:
            gc.collect()
            sizes.append(resident())
            print(f"{finished} done, {sizes[-1] / 2**20:.1f} MiB", file=sys.stderr)

    begin = time.perf_counter()
    left = play(engine, traffic(rng, count), done)
    return {
        "requests": finished,
        "left_early": left,
        "seconds": time.perf_counter() - begin,
        "resident_bytes": sizes,
        "recompiles": engine.compiled - compiled,
        "seed": seed,
        **dataclasses.asdict(engine.stats),
    }


if __name__ == "__main__":
    print(json.dumps(soak(int(sys.argv[1]), int(np.random.SeedSequence().generate_state(1)[0]))))
