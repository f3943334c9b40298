"""One streamed request: sent, read, timed. Whatever goes wrong with it becomes a word, not an
exception.

Times are seconds of `time.perf_counter`. A chunk of the stream is stamped when its last byte is
read, before it is parsed. Tokens are counted by the stream's own usage where the server sends it,
else by chunks with text.
"""

import asyncio
import importlib
import importlib.util
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxinfer.bench.serve.workload import Target

CONNECT_S = 10.0
SHOWN = 200  # characters of a server's complaint that are kept
LONGEST_LINE = 1 << 22  # bytes of one event; a server that sends more is broken


@dataclass
class Outcome:
    """What became of a request.

    sent, ended: when. texts: when each chunk with text came. tokens: generated; counted says by
    whom: "usage" or "chunks". error: its kind, None where the answer is whole; detail: the first
    words of what the server said.
    """

    sent: float
    ended: float = 0.0
    texts: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int | None = None
    tokens: int = 0
    counted: str = "chunks"
    error: str | None = None
    detail: str = ""

    @property
    def ttft(self) -> float:
        """Seconds to the first text; to the end where there was none."""
        return (self.texts[0] if self.texts else self.ended) - self.sent

    @property
    def e2e(self) -> float:
        """Seconds to the end of the answer: its last text."""
        return (self.texts[-1] if self.texts else self.ended) - self.sent

    @property
    def tpot(self) -> float | None:
        """Seconds per token after the first; None for answers of one token."""
        return (self.e2e - self.ttft) / (self.tokens - 1) if self.tokens > 1 else None

    @property
    def gaps(self) -> list[float]:
        """Seconds between neighbouring chunks with text."""
        return [b - a for a, b in zip(self.texts, self.texts[1:], strict=False)]


class _Failed(Exception):
    """An answer that is not whole: kind, detail."""


class Client:
    """Connections to one server. They go nowhere else: no proxy, no redirect."""

    def __init__(self, target: Target, model: str | None, api_key: str | None, timeout: float):
        self.target, self.model, self.timeout = target, model, timeout
        self._httpx = httpx()
        headers = {"Accept-Encoding": "identity"}
        if api_key is not None:
            headers["Authorization"] = f"Bearer {api_key}"
        self._client = self._httpx.AsyncClient(
            headers=headers,
            follow_redirects=False,
            trust_env=False,
            limits=self._httpx.Limits(max_connections=None, max_keepalive_connections=None),
            timeout=self._httpx.Timeout(None, connect=CONNECT_S),
        )

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def find_model(self) -> str:
        """The model that was named, or the first that the server lists.

        ValueError where the server does not answer as one of its kind.
        """
        if self.model is None:
            answer = await self._get(self.target.models)
            try:
                self.model = str(json.loads(answer)["data"][0]["id"])
            except (ValueError, LookupError, TypeError) as error:
                raise ValueError(
                    f"{self.target.models} needs to list a model, got {answer[:SHOWN]!r}; "
                    "name one with --model"
                ) from error
        return self.model

    async def metrics(self) -> str | None:
        """The text of /metrics; None where there is none."""
        try:
            return await self._get(self.target.metrics)
        except ValueError:
            return None

    async def _get(self, url: str) -> str:
        try:
            async with asyncio.timeout(CONNECT_S):
                response = await self._client.get(url)
        except (self._httpx.HTTPError, TimeoutError) as error:
            raise ValueError(f"no answer from {url}: {_words(error)}") from error
        if response.status_code != 200:
            raise ValueError(f"{url} answers {response.status_code}: {response.text[:SHOWN]}")
        return response.text

    def encode(self, body: Mapping[str, Any]) -> bytes:
        """A request's bytes, ready before its time is taken."""
        whole = {
            "model": self.model,
            **body,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        return json.dumps(whole, separators=(",", ":")).encode()

    async def send(self, content: bytes, limit_s: float | None = None) -> Outcome:
        """One request and its whole answer, for at most `limit_s` seconds (None: the timeout)."""
        limit = self.timeout if limit_s is None else min(limit_s, self.timeout)
        outcome = Outcome(time.perf_counter())
        try:
            async with asyncio.timeout(limit):
                await self._stream(content, outcome)
        except TimeoutError:
            outcome.error = "timeout" if limit == self.timeout else "cut off"
        except _Failed as error:
            outcome.error, outcome.detail = error.args
        except self._httpx.ConnectError as error:
            outcome.error, outcome.detail = "no connection", _words(error)
        except self._httpx.HTTPError as error:
            outcome.error, outcome.detail = "broken connection", _words(error)
        outcome.ended = time.perf_counter()
        return outcome

    async def _stream(self, content: bytes, outcome: Outcome) -> None:
        headers = {"Content-Type": "application/json"}
        async with self._client.stream(
            "POST", self.target.url, content=content, headers=headers
        ) as response:
            if response.status_code != 200:
                said = (await response.aread())[: 4 * SHOWN].decode(errors="replace")
                raise _Failed(f"http {response.status_code}", said[:SHOWN])
            kind = response.headers.get("content-type", "")
            if not kind.startswith("text/event-stream"):
                raise _Failed("no stream", f"the answer is {kind!r}")
            done, rest = False, b""
            async for part in response.aiter_raw():
                now = time.perf_counter()
                *lines, rest = (rest + part).split(b"\n")
                if len(rest) > LONGEST_LINE:
                    raise _Failed("bad event", f"a line of more than {LONGEST_LINE} bytes")
                for line in lines:
                    done = _read(line, now, outcome) or done
        if not done:
            raise _Failed("broken stream", "it ended before its last event")


def httpx() -> Any:
    """The HTTP client's package, an extra. ValueError where it is not here."""
    if importlib.util.find_spec("httpx") is None:
        raise ValueError(
            "bench serve needs httpx, which is not here: pip install 'jaxinfer[serve]'"
        )
    return importlib.import_module("httpx")


def _read(line: bytes, now: float, outcome: Outcome) -> bool:
    """Take one line of a stream (WHATWG HTML, server-sent events); whether it says that the answer
    is whole.
    """
    name, _, data = line.strip(b"\r").partition(b":")
    if name != b"data":
        return False  # a comment, an event's name, the end of an event
    data = data.strip()
    if data == b"[DONE]":
        return True
    try:
        event = json.loads(data)
        if "error" in event:
            error = event["error"]
            kind = error.get("code") or error.get("type") or "unknown"
            raise _Failed(f"error in the stream: {kind}", str(error.get("message"))[:SHOWN])
        _count(event, now, outcome)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise _Failed("bad event", data[:SHOWN].decode(errors="replace")) from error
    return False


def _count(event: dict, now: float, outcome: Outcome) -> None:
    for choice in event.get("choices") or ():
        delta = choice.get("delta") or {}
        words = (choice.get("text"), delta.get("content"), delta.get("reasoning_content"))
        if any(words) or delta.get("tool_calls"):
            outcome.texts.append(now)
            if outcome.counted == "chunks":
                outcome.tokens += 1
    usage = event.get("usage")
    if usage:
        outcome.tokens, outcome.counted = int(usage["completion_tokens"]), "usage"
        outcome.prompt_tokens = int(usage["prompt_tokens"])
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
        outcome.cached_tokens = None if cached is None else int(cached)


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:SHOWN] or type(error).__name__
