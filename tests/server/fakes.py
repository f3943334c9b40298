"""An engine without a model: it says what its script says, when it is allowed to; and a server over
it.
"""

import contextlib
import threading
import time
from dataclasses import dataclass, field, fields

import httpx

from jaxinfer import server
from jaxinfer.engine import Stats
from jaxinfer.request import FinishReason, Request, SamplingParams, Token
from jaxinfer.server.loop import EngineLoop
from jaxinfer.server.metrics import Metrics
from jaxinfer.server.service import Service
from tests.server.conftest import HEADERS, KEY, NAME

LONG = 1_000_000  # positions


@dataclass
class Sequence:
    request: Request
    slot: int = -1
    reused: int = 0
    said: int = 0
    finished: bool = False


@dataclass
class Engine:
    """Each step gives every sequence in a slot its next token: its prompt's first id, counted up.

    step_s: how long a step takes. gate: steps wait until it is set. fail_step, fail_add: called
    with the sequences of a step, with a request; may raise.
    """

    slots: int = 4
    step_s: float = 0.0
    gate: threading.Event = field(default_factory=threading.Event)
    sequences: list[Sequence] = field(default_factory=list)
    added: list[tuple[str, int, str]] = field(default_factory=list)
    failed: Exception | None = None
    error_at: int | None = None  # the id at which a sequence ends with an error
    steps: int = 0
    fail_step = staticmethod(lambda running: None)
    fail_add = staticmethod(lambda request: None)

    def __post_init__(self):
        self.gate.set()

    @property
    def idle(self) -> bool:
        return not self.sequences

    @property
    def running(self) -> list[Sequence]:
        return [s for s in self.sequences if s.slot >= 0]

    @property
    def stats(self) -> Stats:
        running = len(self.running)
        known = {"running": running, "slots": self.slots, "steps": self.steps}
        known["waiting"] = len(self.sequences) - running
        return Stats(**{one.name: known.get(one.name, 0) for one in fields(Stats)})

    def add(self, request: Request, *, priority: int = 0, salt: str = "") -> Sequence:
        self.fail_add(request)
        self.added.append((request.id, priority, salt))
        self.sequences.append(Sequence(request))
        return self.sequences[-1]

    def abort(self, sequence: Sequence) -> None:
        sequence.finished = True
        if sequence in self.sequences:
            self.sequences.remove(sequence)

    def step(self) -> list[Token]:
        self.gate.wait(10)
        time.sleep(self.step_s)
        self.steps += 1
        for sequence in self.sequences:
            if sequence.slot < 0 and len(self.running) < self.slots:
                sequence.slot = 0
        self.fail_step(self.running)
        return [self._say(sequence) for sequence in self.running]

    def _say(self, sequence: Sequence) -> Token:
        request = sequence.request
        token = request.prompt_token_ids[0] + sequence.said
        sequence.said += 1
        if token == self.error_at:
            self.sequences.remove(sequence)
            return Token(request.id, token, finish_reason=FinishReason.ERROR, error="no way on")
        last = sequence.said == request.params.max_new_tokens
        if last:
            self.sequences.remove(sequence)
        return Token(request.id, token, finish_reason=FinishReason.LENGTH if last else None)


def request(id: str, first: int = 10, count: int = 5) -> Request:
    return Request(id, (first,), SamplingParams(max_new_tokens=count))


@contextlib.contextmanager
def serving(
    model, engine, *, buffer=4096, most_open=100, stall_s=60.0, max_length=LONG, **settings
):
    """A server over a fake engine: a client, and its service."""
    metrics = Metrics()
    loop = EngineLoop(engine, most_open=most_open, buffer=buffer, stall_s=stall_s, observer=metrics)
    metrics.watch(loop)
    settings = server.Settings(name=NAME, **{"api_keys": (KEY,), "grace_s": 5, **settings})
    service = Service(model, loop, settings, metrics, max_length)
    try:
        with (
            server.background(service) as url,
            httpx.Client(base_url=url, headers=HEADERS, timeout=120) as client,
        ):
            yield client, service
    finally:
        engine.gate.set()
    assert not service.loop.tickets
