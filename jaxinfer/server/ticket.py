"""One call's sequences, between who makes their tokens and who reads them."""

import asyncio
import enum
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from jaxinfer.request import FinishReason, Request, Token


class Cause(enum.StrEnum):
    """Why a ticket ended before its last token."""

    CLIENT = "client_disconnected"
    SLOW = "slow_reader"
    TIMEOUT = "timeout"
    SHUTDOWN = "shutting_down"
    CONTROL = "aborted"
    ENGINE = "engine_failed"
    SEQUENCE = "sequence_failed"


class Aborted(RuntimeError):
    """A ticket that ended early."""

    def __init__(self, cause: Cause, message: str):
        super().__init__(message)
        self.cause = cause


class Ticket:
    """The sequences of one call and the tokens that its reader has not taken yet.

    left: indices of sequences that are not finished. error: why it ended early. on_fail: called
    when it does, for a reader that is busy elsewhere. drop(ticket, indices): the engine need not go
    on with these.
    """

    def __init__(
        self,
        drop: Callable[["Ticket", Sequence[int]], None],
        requests: tuple[Request, ...],
        priority: int,
        salt: str,
    ):
        self.requests, self.priority, self.salt = requests, priority, salt
        self.began = time.monotonic()
        self.left = set(range(len(requests)))
        self.last: dict[int, float] = {}  # when each sequence's latest token came
        self.error: Exception | None = None
        self.on_fail: Callable[[], None] = lambda: None
        self.sequences: list[Any] = []  # the engine's thread's own
        self._drop = drop
        self._events: list[tuple[int, Token]] = []
        self._wake = asyncio.Event()

    @property
    def age(self) -> float:
        """Seconds since it was submitted."""
        return time.monotonic() - self.began

    async def batches(self) -> AsyncIterator[list[tuple[int, Token]]]:
        """(index, token) events as they come, all that wait at once. Raises `error` at the end of a
        ticket that has one.
        """
        while True:
            await self._wake.wait()
            self._wake.clear()
            events, self._events = self._events, []
            if events:
                yield events
            if self.error is not None:
                raise self.error
            if not self.left and not self._events:
                return

    def finish(self, index: int) -> None:
        """One sequence has said enough."""
        if index in self.left:
            self.left.discard(index)
            self._drop(self, (index,))
            self._wake.set()

    def fail(self, error: Exception) -> None:
        """End all that is left of it."""
        if self.error is None and self.left:
            self.error = error
            left, self.left = tuple(self.left), set()
            self._drop(self, left)
            self._wake.set()
            self.on_fail()

    def close(self) -> None:
        """Nobody listens any more."""
        self.fail(Aborted(Cause.CLIENT, "the client closed the connection"))

    def receive(self, events: list[tuple[int, Token]], most: int) -> None:
        """Tokens of one step; more than `most` unread ones end the ticket."""
        events = [(index, token) for index, token in events if index in self.left]
        self._events += events
        for index, token in events:
            if token.finish_reason in (FinishReason.ERROR, FinishReason.ABORT):
                self.fail(Aborted(Cause.SEQUENCE, token.error or "the engine ended this answer"))
            elif token.finish_reason is not None:
                self.left.discard(index)
        self._wake.set()
        if len(self._events) > most:
            self.fail(Aborted(Cause.SLOW, f"the client let {most} tokens wait unread"))
