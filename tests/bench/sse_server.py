"""A small server that streams as OpenAI's API does, at a known pace and with known faults; it keeps
what it did, as the truth that a client's statistics are held against.
"""

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
CACHED = 3  # tokens of every prompt that it says it had
STEP_S = 0.004


@dataclass
class Served:
    """One request as the server saw it. received: when its body was there; wrote: when each chunk
    with text was handed to the socket.
    """

    body: dict
    path: str
    headers: dict[str, str]
    received: float
    wrote: list[float] = field(default_factory=list)


@dataclass
class Server:
    """faults: what is done to the request with that number, counted from 0. per_chunk: tokens in a
    chunk. split: bytes come in pieces of so many. usage: whether streams end with it.
    """

    faults: dict[int, str] = field(default_factory=dict)
    per_chunk: int = 1
    split: int | None = None
    usage: bool = True
    counters: str | None = "jaxinfer"
    first_s: float = 0.02
    url: str = ""
    served: list[Served] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    open: int = 0
    most_open: int = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError)
        with contextlib.suppress(*ends):
            while await self._one(reader, writer):
                await writer.drain()
        writer.close()
        with contextlib.suppress(*ends):
            await writer.wait_closed()

    async def _one(self, reader, writer) -> bool:
        """One request; whether the connection stays."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, path, _ = head[0].split()
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        data = await reader.readexactly(int(headers.get("content-length", 0)))
        if method == "GET":
            self.others.append(path)
            status, text = self._get(path)
            _whole(writer, status, text)
            return True
        one = Served(json.loads(data), path, headers, time.perf_counter())
        self.served.append(one)
        self.open += 1
        self.most_open = max(self.open, self.most_open)
        try:
            return await self._stream(writer, one, self.faults.get(len(self.served) - 1))
        finally:
            self.open -= 1

    def _get(self, path: str) -> tuple[int, str]:
        if path == "/v1/models":
            return 200, json.dumps({"data": [{"id": "fake"}]})
        if path == "/metrics" and self.counters:
            asked = sum(len(one.body.get("prompt", ())) for one in self.served)
            return 200, (
                "# TYPE jaxinfer_prefix_hit_tokens counter\n"
                f"{self.counters}_prefix_hit_tokens_total {CACHED * len(self.served)}.0\n"
                f'{self.counters}_read_prompt_tokens_total{{model="a b"}} {asked}\n'
            )
        return 404, "{}"

    async def _stream(self, writer, one: Served, fault: str | None) -> bool:
        if fault in ("429", "500"):
            _whole(writer, int(fault), json.dumps({"error": {"message": f"no: {fault}"}}))
            return True
        if fault == "redirect":
            writer.write(
                b"HTTP/1.1 307 X\r\nLocation: http://localhost:9/\r\nContent-Length: 0\r\n\r\n"
            )
            return True
        if fault == "plain":
            _whole(writer, 200, "{}")
            return True
        if fault == "hang up":
            return False
        writer.write(HEAD)
        await asyncio.sleep(self.first_s)
        chat, new = one.path.endswith("/chat/completions"), one.body["max_tokens"]
        if chat:
            await self._event(
                writer, {"choices": [{"delta": {"role": "assistant", "content": ""}}]}
            )
        for i in range(0, new, self.per_chunk):
            if fault and i >= new // 2:
                return await self._break(writer, fault)
            text = "t" * min(self.per_chunk, new - i)
            choice = {"delta": {"content": text}} if chat else {"text": text}
            one.wrote.append(time.perf_counter())
            await self._event(writer, {"choices": [{"index": 0, **choice}]})
            await asyncio.sleep(STEP_S)
        if self.usage:
            asked = len(one.body.get("prompt", ())) or 7
            usage = {"prompt_tokens": asked, "completion_tokens": new}
            usage["prompt_tokens_details"] = {"cached_tokens": CACHED}
            await self._event(writer, {"choices": [], "usage": usage})
        await self._write(writer, b": a comment\r\ndata: [DONE]\r\n\r\n")
        writer.write(b"0\r\n\r\n")
        return True

    async def _break(self, writer, fault: str) -> bool:
        if fault == "event":
            await self._event(writer, {"error": {"message": "it broke", "code": "engine_failed"}})
        elif fault == "junk":
            await self._write(writer, b"data: {not json\n\n")
        elif fault == "hang":
            await asyncio.sleep(5)
        elif fault == "short":
            writer.write(b"0\r\n\r\n")
        await writer.drain()
        return False

    async def _event(self, writer, event: dict) -> None:
        await self._write(writer, b"event: x\ndata: " + json.dumps(event).encode() + b"\n\n")

    async def _write(self, writer, data: bytes) -> None:
        size = self.split or len(data)
        for i in range(0, len(data), size):
            part = data[i : i + size]
            writer.write(b"%x\r\n%b\r\n" % (len(part), part))
            await writer.drain()


def _whole(writer, status: int, text: str) -> None:
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
    writer.write((head + text).encode())


@contextlib.contextmanager
def running(**settings) -> Iterator[Server]:
    """A server in a thread, at a free port of this machine."""
    server, ready = Server(**settings), threading.Event()
    loop, ends = asyncio.new_event_loop(), asyncio.Event()

    async def main() -> None:
        listening = await asyncio.start_server(server.handle, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        server.url = f"http://127.0.0.1:{port}/v1/completions"
        ready.set()
        async with listening:
            await ends.wait()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    thread = threading.Thread(target=loop.run_until_complete, args=(main(),))
    thread.start()
    assert ready.wait(10)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(ends.set)
        thread.join()
        loop.close()
