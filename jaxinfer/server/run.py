"""Starting a server, telling when it is ready, and ending it cleanly."""

import asyncio
import contextlib
import dataclasses
import signal
import socket
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from types import FrameType

import uvicorn

from jaxinfer.engine import Engine
from jaxinfer.model import Model
from jaxinfer.scheduler import Limits
from jaxinfer.server.app import application
from jaxinfer.server.loop import EngineLoop, State, Unavailable
from jaxinfer.server.metrics import Metrics
from jaxinfer.server.service import Service
from jaxinfer.server.settings import Settings
from jaxinfer.server.ticket import Cause

CLOSE_S = 5  # what connections have to close after the last answer
KEEP_ALIVE_S = 30  # what a connection may rest between two calls
LOOPBACK = ("localhost", "127.0.0.1", "::1")
Progress = Callable[[int, int], None]


def build(
    model: Model,
    settings: Settings,
    limits: Limits,
    *,
    warm_up: Sequence[int | None] = (None,),
    progress: Progress | None = None,
    **options,
) -> Service:
    """A service over a model, with an engine of its own that is not started yet.

    warm_up: kinds of programs to compile before it is ready (`Engine.warm_up`'s top_n; none: all
    compile when they are first needed). options: of `Engine`.
    """
    engine = Engine(
        model.params,
        model.config,
        limits,
        mesh=model.mesh,
        kv_dtype=model.kv_dtype,
        eos_ids=() if model.tokenizer is None else model.tokenizer.eos_ids,
        **options,
    )
    metrics = Metrics()
    loop = EngineLoop(
        engine,
        most_open=limits.slots + settings.max_queue,
        buffer=settings.buffer,
        stall_s=settings.stall_s,
        warm_up=lambda engine: engine.warm_up(progress, top_n=warm_up) if warm_up else None,
        observer=metrics,
    )
    metrics.watch(loop)
    return Service(model, loop, settings, metrics, limits.max_length)


def listen(host: str, port: int) -> socket.socket:
    """A socket at that address; port 0 takes a free one. ValueError says why it cannot be."""
    if not 0 <= port < 2**16:
        raise ValueError(f"--port needs to be 0 .. {2**16 - 1}, got {port}")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        server = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise ValueError(
            f"--host and --port need an address, got {host}:{port} ({error})"
        ) from error
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(address)
        server.listen(1024)
    except OSError as error:
        server.close()
        raise ValueError(
            f"cannot listen at {host}:{port}: {error}; choose another --port (0 takes a free one)"
        ) from error
    return server


def url(server: socket.socket) -> str:
    """Where clients find it, without a path."""
    host, port = server.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Uvicorn(uvicorn.Server):
    """uvicorn that lets calls finish before it closes, and does not raise its signal again."""

    def __init__(self, service: Service, on_ready: Callable[[], None]):
        super().__init__(
            uvicorn.Config(
                application(service),
                lifespan="on",
                ws="none",
                access_log=False,
                log_config=None,
                log_level="critical",
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=CLOSE_S,
            )
        )
        self._service, self._on_ready = service, on_ready
        self.failure: Exception | None = None
        self._tasks: set[asyncio.Task] = set()
        self._home: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._home = asyncio.get_running_loop()
        self._tasks.add(asyncio.create_task(self._announce()))

    async def _announce(self) -> None:
        try:
            await self._service.loop.wait_ready()
        except Unavailable as error:
            if self._service.loop.state is State.DEAD:
                self.failure, self.should_exit = error, True
        else:
            self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._service.loop.drain(self._service.settings.grace_s)
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {s: signal.signal(s, self.handle_exit) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal lets calls finish, the second ends them."""
        if self.should_exit and self._home is not None:
            loop = self._service.loop
            self._home.call_soon_threadsafe(
                loop.abort_all, Cause.SHUTDOWN, "the server shuts down at once"
            )
        self.should_exit = True


def serve(service: Service, server: socket.socket, on_ready: Callable[[], None]) -> None:
    """Serve at a listening socket until a signal comes; RuntimeError where the engine cannot be
    made ready.
    """
    program = _Uvicorn(service, on_ready)
    with server:
        program.run(sockets=[server])
    if program.failure is not None:
        raise RuntimeError(str(program.failure)) from service.loop.cause


@contextlib.contextmanager
def background(service: Service, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Serve from a thread of this process, ready at once: its URL. Leaving ends it cleanly."""
    server, ready = listen(host, port), threading.Event()
    program = _Uvicorn(service, ready.set)
    thread = threading.Thread(target=program.run, kwargs={"sockets": [server]}, name="server")
    address = url(server)
    with server:
        thread.start()
        try:
            while not ready.wait(0.05):
                if not thread.is_alive():
                    raise RuntimeError(f"the server did not start: {program.failure}")
            yield address
        finally:
            program.should_exit = True
            thread.join()


def guarded(settings: Settings, host: str) -> Settings:
    """The settings, with what an open server at a loopback address needs: names other than its own
    are refused, so that a web page cannot reach it through a name that it points there.
    """
    if host in LOOPBACK and not settings.api_keys and not settings.allowed_hosts:
        return dataclasses.replace(settings, allowed_hosts=LOOPBACK)
    return settings
