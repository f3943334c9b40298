"""Many requests as a row of a result asks: so many at once, or so many a second whatever becomes of
them. Bounded in number and in time.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jaxinfer.bench.serve import counters
from jaxinfer.bench.serve.client import Client, Outcome
from jaxinfer.bench.serve.workload import Dataset, Lengths, poisson

MOST_OPEN = 4096  # requests under way at once; an open loop that needs more fails them
MOST_REQUESTS = 100_000
WARM_UP_SEED = 2**31 - 1


@dataclass(frozen=True)
class Case:
    """One row: `requests` sent with `concurrency` under way all the time, or `rate` a second at
    Poisson's times. warm_up: requests sent before. seconds: after them nothing more is sent, and
    what is under way is cut off.
    """

    requests: int
    concurrency: int | None = None
    rate: float | None = None
    warm_up: int = 2
    seconds: float = 600.0

    def __post_init__(self):
        if not 1 <= self.requests <= MOST_REQUESTS or not 0 <= self.warm_up <= MOST_REQUESTS:
            raise ValueError(
                f"--requests needs to be 1 .. {MOST_REQUESTS} and --warm_up at least 0, got "
                f"{self.requests} and {self.warm_up}"
            )
        if (self.concurrency is None) == (self.rate is None):
            raise ValueError("give one of --concurrency and --rate")
        if self.concurrency is not None and not 1 <= self.concurrency <= MOST_OPEN:
            raise ValueError(f"--concurrency needs to be 1 .. {MOST_OPEN}, got {self.concurrency}")
        if self.rate is not None and not 0 < self.rate < 1e6:
            raise ValueError(f"--rate needs to be above 0 and below 1e6, got {self.rate}")
        if not 0 < self.seconds <= 86400:
            raise ValueError(f"--seconds needs to be above 0 and at most a day, got {self.seconds}")


@dataclass(frozen=True)
class Load:
    """What a row saw. seconds: from the first request sent to the last answer's end. late: seconds
    that each open-loop request left after its time (this client's own fault). cpu: the part of a
    core that this client took. prefix: see `counters.prefix_hits`.
    """

    case: Case
    outcomes: tuple[Outcome, ...]
    seconds: float
    unsent: int
    late: tuple[float, ...]
    cpu: float
    peak: int
    prefix: tuple[float, float] | None


class _Run:
    """A row under way."""

    def __init__(self, client: Client, case: Case):
        self.client, self.case = client, case
        self.outcomes: list[Outcome] = []
        self.late: list[float] = []
        self.open = self.peak = self.sent = 0
        self.begin = time.perf_counter()

    @property
    def left(self) -> float:
        """Seconds until it is cut off."""
        return self.begin + self.case.seconds - time.perf_counter()

    async def send(self, content: bytes) -> None:
        self.open += 1
        self.sent += 1
        self.peak = max(self.peak, self.open)
        try:
            self.outcomes.append(await self.client.send(content, max(self.left, 0.0)))
        finally:
            self.open -= 1

    async def closed(self, contents: Iterator[bytes], concurrency: int) -> None:
        """Each of `concurrency` users sends its next request when its last is answered."""

        async def user() -> None:
            for content in contents:
                await self.send(content)
                if self.left <= 0:
                    return

        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(user())

    async def opened(self, contents: Sequence[bytes], times: Sequence[float]) -> None:
        """Requests leave at their times, whether others are answered or not."""
        async with asyncio.TaskGroup() as group:
            for content, when in zip(contents, times, strict=True):
                wait = self.begin + when - time.perf_counter()
                if self.left <= max(wait, 0.0):
                    return
                await asyncio.sleep(max(wait, 0.0))
                now = time.perf_counter()
                self.late.append(max(0.0, now - self.begin - when))
                if self.open >= MOST_OPEN:
                    full = Outcome(now, now, error="client full", detail=f"{MOST_OPEN} under way")
                    self.outcomes.append(full)
                    self.sent += 1
                else:
                    group.create_task(self.send(content))


async def run(client: Client, work: Lengths | Dataset, case: Case, seed: Sequence[int]) -> Load:
    """Warm up, then send the case's requests. The same seed sends the same at the same times."""
    chat = client.target.chat
    if case.warm_up:
        warm = work.bodies(case.warm_up, [*seed, WARM_UP_SEED], chat=chat)
        users = min(case.warm_up, case.concurrency or case.warm_up, MOST_OPEN)
        await _Run(client, case).closed((client.encode(body) for body in warm), users)
    # bytes are made before the clock starts
    contents = [client.encode(body) for body in work.bodies(case.requests, seed, chat=chat)]
    before = await client.metrics()
    under_way, cpu = _Run(client, case), time.process_time()
    if case.rate is None:
        assert case.concurrency is not None
        await under_way.closed(iter(contents), case.concurrency)
    else:
        times = poisson(case.rate, case.requests, [*seed, 1])
        await under_way.opened(contents, [when - times[0] for when in times])  # the first at once
    cpu = time.process_time() - cpu
    ends = [outcome.ended for outcome in under_way.outcomes]
    seconds = max(ends) - min(outcome.sent for outcome in under_way.outcomes)
    return Load(
        case=case,
        outcomes=tuple(under_way.outcomes),
        seconds=seconds,
        unsent=case.requests - under_way.sent,
        late=tuple(under_way.late),
        cpu=cpu / max(seconds, 1e-9),
        peak=under_way.peak,
        prefix=counters.prefix_hits(before, await client.metrics()),
    )
