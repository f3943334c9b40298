"""HTTP around the calls: who may, how a body is read, how an answer or a stream leaves.

An endpoint's work is a function (Call) -> ASGI response. Whatever it raises becomes an error in
OpenAI's shape; while tokens come, the client's going away and the clock end the call.
"""

import asyncio
import contextlib
import hashlib
import hmac
import json
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jaxinfer.server.errors import ApiError, as_api_error, refusal
from jaxinfer.server.service import Service
from jaxinfer.server.ticket import Aborted, Cause, Ticket

LOG = logging.getLogger("jaxinfer.server")
LAST_WORD_S = 1.0  # what a client that reads too slowly has to take the reason
_PORT = re.compile(r":\d*$")
DONE = "data: [DONE]\n\n"
Guard = Literal["open", "key", "admin"]
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Call:
    """One call on its way: the service, the validated body, what identifies the caller."""

    service: Service
    body: Any
    request: Request
    salt: str = ""

    async def collect(self, ticket: Ticket, work: Awaitable[Answer]) -> Answer:
        """Await an answer for as long as somebody waits for it."""
        async with attended(ticket, self.request.receive, self.service.settings.request_s):
            return await work


@dataclass(frozen=True)
class Endpoint:
    """One line of the API. body, answer: schemas of what comes and goes; None: nothing, text."""

    method: Literal["GET", "POST"]
    path: str
    handler: Callable[[Call], Awaitable[ASGIApp]]
    summary: str
    guard: Guard = "key"
    body: type[BaseModel] | None = None
    answer: type[BaseModel] | None = None
    streams: bool = False


class Handled:
    """An endpoint as an ASGI application."""

    def __init__(self, endpoint: Endpoint, service: Service):
        self._endpoint, self._service = endpoint, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status = 0

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._answer(Request(scope, receive), counted)
        except ClientDisconnect:
            status = status or 499
        except Exception as error:
            failure = as_api_error(error) or unexpected(error)
            if not status:
                await failure.response()(scope, receive, counted)
        finally:
            self._service.metrics.calls.labels(self._endpoint.path, str(status)).inc()

    async def _answer(self, request: Request, send: Send) -> None:
        service = self._service
        salt = allow(request.headers, self._endpoint.guard, service)
        body = None
        if self._endpoint.body is not None:
            data = await read_body(
                request, service.settings.max_body_bytes, service.settings.read_s
            )
            try:
                body = self._endpoint.body.model_validate_json(data)
            except ValidationError as error:
                raise refusal(error) from None
        response = await self._endpoint.handler(Call(service, body, request, salt))
        await response(request.scope, request.receive, send)


def unexpected(error: Exception) -> ApiError:
    """What a client hears of a fault of ours; the log has the rest."""
    LOG.error("a call failed", exc_info=error)
    return ApiError(500, f"the server failed at this call: {type(error).__name__}", code="internal")


def allow(headers: Headers, guard: Guard, service: Service) -> str:
    """Refuse who may not; otherwise a salt for what the caller may share with others."""
    settings = service.settings
    host = _PORT.sub("", headers.get("host", "")).strip("[]").lower()
    if settings.allowed_hosts and host not in settings.allowed_hosts:
        raise ApiError(403, f"no such host here: {host!r}; see --allowed_hosts", code="wrong_host")
    if guard == "open":
        return ""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    key = key.strip() if scheme.lower() == "bearer" else ""
    if guard == "admin":
        if settings.admin_key is None:
            raise ApiError(
                403,
                "control endpoints are closed: start with --admin_key_file",
                code="no_admin_key",
            )
        keys: Sequence[str] = (settings.admin_key,)
    else:
        keys = settings.api_keys
    if not keys:
        return ""
    if not matches(key, keys):
        raise ApiError(
            401,
            "this needs a valid key: send the header 'Authorization: Bearer KEY'",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
    return hashlib.sha256(key.encode()).hexdigest()


def matches(key: str, keys: Sequence[str]) -> bool:
    """Whether it is one of them; takes as long whichever it is, and if it is none."""
    digest = hashlib.sha256(key.encode()).digest()
    found = [hmac.compare_digest(digest, hashlib.sha256(k.encode()).digest()) for k in keys]
    return any(found)


async def read_body(request: Request, most: int, wait_s: float) -> bytes:
    """The whole body, refused where it is not JSON's type, too large or too slow."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(
            415, f"the body needs 'Content-Type: application/json', got {kind or 'none'!r}"
        )
    too_large = ApiError(413, f"the body needs to be at most {most} bytes", code="body_too_large")
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > most:
        raise too_large
    data = bytearray()
    try:
        async with asyncio.timeout(wait_s):
            async for part in request.stream():
                data += part
                if len(data) > most:
                    raise too_large
    except TimeoutError:
        raise ApiError(408, f"the body needs to come within {wait_s:g} s") from None
    return bytes(data)


def json_response(answer: BaseModel) -> Response:
    return Response(answer.model_dump_json(), media_type="application/json")


def event(data: dict[str, Any], name: str | None = None) -> str:
    """One server-sent event (WHATWG HTML, server-sent events)."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}\n\n" if name is None else f"event: {name}\ndata: {text}\n\n"


@contextlib.asynccontextmanager
async def attended(ticket: Ticket, receive: Receive, limit_s: float) -> AsyncIterator[None]:
    """Run what needs a ticket's tokens while its client is there and the time is not over; then the
    ticket is closed. Raises the ticket's error where it failed, wherever the body waits.
    """

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        ticket.close()

    watcher = asyncio.create_task(gone())
    try:
        async with asyncio.timeout(limit_s - (ticket.age)) as deadline:
            ticket.on_fail = lambda: deadline.reschedule(0.0)
            try:
                if ticket.error is not None:
                    raise ticket.error
                yield
            finally:
                ticket.on_fail = lambda: None
    except TimeoutError:
        late = Aborted(Cause.TIMEOUT, f"the answer took more than {limit_s:g} s")
        ticket.fail(late)
        raise ticket.error or late from None
    finally:
        watcher.cancel()
        ticket.close()


class EventStream:
    """Server-sent events as an ASGI response. An error before the first one is an ordinary error
    response; a later one is an event, written by `failed`.
    """

    def __init__(
        self,
        call: Call,
        ticket: Ticket,
        events: AsyncIterator[str],
        failed: Callable[[ApiError], str],
    ):
        self._ticket, self._events, self._failed = ticket, events, failed
        self._limit_s = call.service.settings.request_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False
        try:
            async with attended(self._ticket, receive, self._limit_s):
                async for text in self._events:
                    if not started:
                        started = True
                        await send(_start())
                    await send(_part(text))
                await send(_part("", more=False))
        except Exception as error:
            failure = as_api_error(error) or unexpected(error)
            if not started:
                raise failure from error
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORD_S):
                    await send(_part(self._failed(failure), more=False))


def _start() -> Message:
    headers = [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-store"),
        (b"x-accel-buffering", b"no"),
    ]
    return {"type": "http.response.start", "status": 200, "headers": headers}


def _part(text: str, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": text.encode(), "more_body": more}
