"""One thread owns the engine and steps it; an asyncio loop submits requests and receives tokens.

Everything public runs on the asyncio loop's thread, everything that touches the engine on the
engine's. Between them lie a queue of commands one way and, the other way, one call per step that
hands over all its tokens; the engine waits where the loop falls HAND_OVERS steps behind. A ticket's
tokens wait for their reader in a bounded buffer: who does not read in time is dropped, nobody else
waits. What goes wrong with one request ends that ticket; only where the engine gives up does every
ticket end. Knows nothing of HTTP or text.
"""

import asyncio
import contextlib
import enum
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from jaxinfer.engine import Stats, StepFailed
from jaxinfer.request import Request, Token
from jaxinfer.scheduler import QueueFull
from jaxinfer.server.ticket import Aborted, Cause, Ticket

HAND_OVERS = 16  # steps whose tokens may be on their way to the asyncio loop
RECHECK_S = 0.5  # how often a waiting engine thread looks whether it should stop


class State(enum.StrEnum):
    STARTING = "starting"  # compiling
    READY = "ready"
    DRAINING = "draining"  # finishes what it has, takes nothing new
    STOPPED = "stopped"
    DEAD = "dead"  # the engine gave up


class Unavailable(RuntimeError):
    """The loop takes nothing: it is starting, draining, stopped or dead."""


class Runner(Protocol):
    """What the loop needs of an engine."""

    failed: Exception | None

    @property
    def idle(self) -> bool: ...
    @property
    def stats(self) -> Stats: ...
    def add(self, request: Request, *, priority: int, salt: str) -> Any: ...
    def abort(self, sequence: Any, /) -> None: ...
    def step(self) -> Sequence[Token]: ...


class Observer(Protocol):
    """Who is told what happens to requests, on the asyncio loop's thread."""

    def admitted(self, waited_s: float) -> None: ...
    def tokens(self, ticket: Ticket, index: int, count: int, now: float) -> None: ...
    def ended(self, ticket: Ticket) -> None: ...


class _Stop(Exception):
    """Ends the engine's thread."""


class EngineLoop:
    """Give it an engine, `start` it, `submit` requests to it.

    most_open: sequences that may run and wait. buffer: unread tokens of one ticket. stall_s: how
    long one step may take before `healthy` says no. warm_up(engine): what to do with the engine
    before it is ready.
    """

    def __init__(
        self,
        engine: Runner,
        *,
        most_open: int,
        buffer: int = 4096,
        stall_s: float = 120.0,
        warm_up: Callable[[Any], object] = lambda engine: None,
        observer: Observer | None = None,
    ):
        self.engine = engine
        self.state = State.STARTING
        self.paused = False
        self.cause: Exception | None = None
        self.compiled = 0  # programs, when it became ready
        self.tickets: set[Ticket] = set()
        self._most_open, self._buffer, self._stall_s = most_open, buffer, stall_s
        self._warm_up, self._observer = warm_up, observer
        self._changed = asyncio.Event()  # state, or a ticket that ended
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._calls: set[asyncio.Future] = set()
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        # the engine's thread's own
        self._owners: dict[str, tuple[Ticket, int]] = {}
        self._entering: dict[str, tuple[Any, float]] = {}
        self._resting, self._asleep = False, False
        self._progress = time.monotonic()
        self._stopping = False
        self._room = threading.Semaphore(HAND_OVERS)

    # for everybody

    def start(self) -> None:
        """Begin warming up; the running asyncio loop becomes the one that is served."""
        self._home = asyncio.get_running_loop()
        self._thread.start()

    @property
    def ready(self) -> bool:
        return self.state is State.READY and not self.paused

    @property
    def healthy(self) -> bool:
        """Steps make progress, or there is nothing to do."""
        if self.state in (State.DEAD, State.STOPPED):
            return False
        if self.state is State.STARTING or self._asleep:
            return self._thread.is_alive()
        return time.monotonic() - self._progress < self._stall_s

    @property
    def open(self) -> int:
        """Sequences that run or wait."""
        return sum(len(ticket.left) for ticket in self.tickets)

    def submit(self, requests: Sequence[Request], *, priority: int = 0, salt: str = "") -> Ticket:
        """Hand requests over to the engine; see `Engine.add` for priority and salt. QueueFull or
        Unavailable where it takes none.
        """
        if self.state is not State.READY:
            raise Unavailable(f"the server is {self.state}")
        if len(requests) > self._most_open:
            raise ValueError(
                f"a call needs at most {self._most_open} sequences, got {len(requests)}; ask for fewer"
            )
        if self.open + len(requests) > self._most_open:
            raise QueueFull(
                f"{self.open} requests run or wait, of at most {self._most_open}; try again later"
            )
        ticket = Ticket(self.drop, tuple(requests), priority, salt)
        self.tickets.add(ticket)
        self._commands.put(lambda: self._add(ticket))
        return ticket

    async def call(self, function: Callable[[Any], Any]) -> Any:
        """function(engine), between two steps."""
        if self.state in (State.DEAD, State.STOPPED):
            raise Unavailable(f"the server is {self.state}")
        future = self._home.create_future()
        self._calls.add(future)
        future.add_done_callback(self._calls.discard)
        self._commands.put(lambda: self._call(function, future))
        return await future

    async def pause(self) -> None:
        """Finish the step under way and rest; requests wait."""
        await self.call(lambda engine: self._rest(True))
        self.paused = True

    async def resume(self) -> None:
        await self.call(lambda engine: self._rest(False))
        self.paused = False

    def abort_all(self, cause: Cause, message: str) -> int:
        """End every ticket; how many there were."""
        tickets = list(self.tickets)
        for ticket in tickets:
            ticket.fail(Aborted(cause, message))
        return len(tickets)

    async def drain(self, grace_s: float) -> None:
        """Take nothing new, let what runs finish for so long, then end it."""
        if self.state in (State.STARTING, State.READY):
            self._become(State.DRAINING)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s if not self.paused else 0.0):
                while self.tickets:
                    self._changed.clear()
                    await self._changed.wait()
        self.abort_all(Cause.SHUTDOWN, "the server shuts down")

    async def stop(self, wait_s: float = 10.0) -> None:
        """End the engine's thread, after the step under way."""
        self.abort_all(Cause.SHUTDOWN, "the server shuts down")
        if self.state is not State.DEAD:
            self._become(State.STOPPED)
        self._stopping = True
        self._commands.put(lambda: None)
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, wait_s)

    async def wait_ready(self) -> None:
        """Returns when it is ready; Unavailable when it never will be."""
        while self.state is State.STARTING:
            self._changed.clear()
            await self._changed.wait()
        if self.state is not State.READY:
            raise Unavailable(f"the server is {self.state}: {self.cause}")

    def drop(self, ticket: Ticket, indices: Sequence[int]) -> None:
        """A ticket needs these sequences no more."""
        self._commands.put(lambda: self._abort(ticket, indices))
        self._forget(ticket)

    def _become(self, state: State) -> None:
        self.state = state
        self._changed.set()

    def _forget(self, ticket: Ticket) -> None:
        if not ticket.left and ticket in self.tickets:
            self.tickets.discard(ticket)
            self._changed.set()
            if self._observer is not None:
                self._observer.ended(ticket)

    def _take(self, found: dict[Ticket, list[tuple[int, Token]]], waits: list[float]) -> None:
        """The tokens of a step have come over."""
        self._room.release()
        now = time.monotonic()
        if self._observer is not None:
            for waited in waits:
                self._observer.admitted(waited)
        for ticket, events in found.items():
            if self._observer is not None:
                counts: dict[int, int] = {}
                for index, _ in events:
                    counts[index] = counts.get(index, 0) + 1
                for index, count in counts.items():
                    if index in ticket.left:
                        self._observer.tokens(ticket, index, count, now)
                        ticket.last[index] = now
            ticket.receive(events, self._buffer)
            self._forget(ticket)

    def _die(self, error: Exception) -> None:
        self.cause = error
        self._become(State.DEAD)
        message = f"the engine failed: {type(error).__name__}: {error}"
        self.abort_all(Cause.ENGINE, message)
        for future in list(self._calls):
            if not future.done():
                future.set_exception(Unavailable(message))

    # on the engine's thread

    def _work(self) -> None:
        try:
            self._warm_up(self.engine)
            self._tell(self._warm, self.engine.stats.compiled)
            while True:
                self._obey()
                try:
                    tokens = self.engine.step()
                except StepFailed as error:
                    self._lose(error)
                else:
                    self._deliver(tokens)
        except _Stop:
            return
        except Exception as error:
            with contextlib.suppress(_Stop):
                self._tell(self._die, error)

    def _lose(self, error: StepFailed) -> None:
        """Sequences that made steps fail are lost, and end their tickets; the rest goes on if it
        can.
        """
        if self.engine.failed is not None:
            raise error
        lost = {id(sequence) for sequence in error.sequences}
        for ticket in {ticket for ticket, _ in self._owners.values()}:
            if any(id(sequence) in lost for sequence in ticket.sequences):
                self._tell(ticket.fail, Aborted(Cause.ENGINE, f"a step failed: {error}"))

    def _warm(self, compiled: int) -> None:
        self.compiled = compiled
        if self.state is State.STARTING:
            self._become(State.READY)

    def _rest(self, resting: bool) -> None:
        self._resting = resting

    def _tell(self, function: Callable[..., None], *arguments) -> None:
        """Call on the asyncio loop's thread, soon."""
        try:
            self._home.call_soon_threadsafe(function, *arguments)
        except RuntimeError as closed:
            raise _Stop from closed

    def _obey(self) -> None:
        """Carry out commands; come back when there is a step to make."""
        while True:
            rests = self._resting or self.engine.idle
            try:
                if rests and self._commands.empty():
                    self._asleep = True
                command = self._commands.get(block=rests)
            except queue.Empty:
                return
            finally:
                self._progress, self._asleep = time.monotonic(), False
            if self._stopping:
                raise _Stop
            command()

    def _add(self, ticket: Ticket) -> None:
        for index, request in enumerate(ticket.requests):
            try:
                if ticket.error is not None:
                    return
                sequence = self.engine.add(request, priority=ticket.priority, salt=ticket.salt)
            except Exception as error:
                self._tell(ticket.fail, error)
                return
            ticket.sequences.append(sequence)
            self._owners[request.id] = (ticket, index)
            self._entering[request.id] = (sequence, ticket.began)

    def _abort(self, ticket: Ticket, indices: Sequence[int]) -> None:
        for index in indices:
            if index < len(ticket.sequences):
                self._owners.pop(ticket.requests[index].id, None)
                self._entering.pop(ticket.requests[index].id, None)
                self.engine.abort(ticket.sequences[index])

    def _call(self, function: Callable[[Any], Any], future: asyncio.Future) -> None:
        try:
            result, error = function(self.engine), None
        except Exception as caught:
            result, error = None, caught
        self._tell(_settle, future, result, error)

    def _deliver(self, tokens: Sequence[Token]) -> None:
        found: dict[Ticket, list[tuple[int, Token]]] = {}
        for token in tokens:
            owner = self._owners.get(token.request_id)
            if owner is not None:
                found.setdefault(owner[0], []).append((owner[1], token))
                if token.finish_reason is not None:
                    del self._owners[token.request_id]
        waits = self._entered(time.monotonic())
        if not found and not waits:
            return
        while not self._room.acquire(timeout=RECHECK_S):
            if self._stopping:
                raise _Stop
        self._tell(self._take, found, waits)

    def _entered(self, now: float) -> list[float]:
        """How long those waited that have entered a slot since."""
        inside = [id for id, (sequence, _) in self._entering.items() if sequence.slot >= 0]
        return [now - self._entering.pop(id)[1] for id in inside]


def _settle(future: asyncio.Future, result: Any, error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
