"""What tests of the engine share: small limits, requests, and engines that share their programs."""

import dataclasses

from jaxinfer.engine import Engine
from jaxinfer.request import Request, SamplingParams, Token
from jaxinfer.scheduler import Limits

LIMITS = Limits(slots=3, max_length=64, chunk=8, budget=12, decode_steps=4)
GREEDY = SamplingParams(temperature=0, max_new_tokens=15)
PAGE = 4
TINY_POOL = 20  # pages of PAGE: a sequence of 64 positions and a little


class Engines:
    """Makes engines of one model; those of the same sizes share compiled programs."""

    def __init__(self, config, params):
        self.config, self.params = config, params
        self._programs = {}

    def __call__(self, limits=LIMITS, *, page_size=PAGE, num_pages=TINY_POOL, **options) -> Engine:
        sizes = dataclasses.replace(limits, queue=None), page_size, num_pages
        engine = Engine(
            self.params,
            self.config,
            limits,
            page_size=page_size,
            num_pages=num_pages,
            programs=self._programs.get(sizes),
            **options,
        )
        self._programs[sizes] = engine._device.programs
        return engine


def requests(prompts, params=GREEDY) -> list[Request]:
    return [Request(id=str(i), prompt_token_ids=p, params=params) for i, p in enumerate(prompts)]


def check(engine) -> None:
    """Conservation of slots and pages, page by page."""
    engine._scheduler.check()


def run_to_end(engine):
    """The tokens of what has been added, with every step checked."""
    while not engine.idle:
        yield from engine.step()
        check(engine)
    assert engine.stats.pages_used == 0


def collect(engine, wanted) -> list[list[Token]]:
    """A request's tokens, for each."""
    found = {request.id: [] for request in wanted}
    for token in engine.run(wanted):
        found[token.request_id].append(token)
    return [found[request.id] for request in wanted]


def ids(tokens) -> list[list[int]]:
    return [[token.token_id for token in row] for row in tokens]
