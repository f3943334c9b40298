"""The requests of a load: seeded lengths or the lines of a file, with a prefix that they share."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import numpy as np

LEAST_ID = 16  # ids below it are often special tokens
RESERVED = ("model", "stream", "stream_options")  # what a line of a file may not set
WORDS = re.findall(
    r"\w+",
    "time year people way day man thing woman life child world school state family student group "
    "country problem hand part place case week company system program question work government "
    "number night point home water room mother area money story fact month lot right study book "
    "eye job word business issue side kind head house service friend father power hour game line "
    "end member law car city name president team minute idea kid body information back parent",
)  # each about one token to a tokenizer made of English


@dataclass(frozen=True)
class Target:
    """Where requests go. url: ends in /completions; chat where in /chat/completions."""

    url: str

    @classmethod
    def parse(cls, text: str) -> "Target":
        """A whole URL, or one without its end, which means /v1/completions.

        ValueError where it is no URL of a server.
        """
        parts = urlsplit(text)
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
            raise ValueError(
                f"--url needs to look like http://127.0.0.1:8000/v1/completions, got {text!r}"
            )
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(
                "--url needs to be without user, password, query and fragment; a key is read from "
                "--api_key_file"
            )
        path = parts.path.rstrip("/")
        if path in ("", "/v1"):
            path = "/v1/completions"
        if not path.endswith("/completions"):
            raise ValueError(
                f"--url needs to end in /completions or /chat/completions, got {text!r}"
            )
        return cls(urlunsplit((parts.scheme, parts.netloc, path, "", "")))

    @property
    def chat(self) -> bool:
        return self.url.endswith("/chat/completions")

    @property
    def models(self) -> str:
        """Where the server's models are listed."""
        return self.url.removesuffix("/completions").removesuffix("/chat") + "/models"

    @property
    def metrics(self) -> str:
        parts = urlsplit(self.url)
        return urlunsplit((parts.scheme, parts.netloc, "/metrics", "", ""))


@dataclass(frozen=True)
class Lengths:
    """Prompts of `input` and answers of `output` tokens on average, each uniform in 1 - vary ..
    1 + vary of that. shared: the part of a prompt with which all begin. A prompt is token ids below
    vocab_size, or, for a chat, so many English words.
    """

    input: int = 512
    output: int = 128
    vary: float = 0.5
    shared: float = 0.0
    vocab_size: int = 1000
    ignore_eos: bool = True
    temperature: float = 0.0

    def __post_init__(self):
        if min(self.input, self.output) < 1 or not 0 <= self.vary < 1 or not 0 <= self.shared <= 1:
            raise ValueError(
                "a load needs --input_tokens and --output_tokens of at least 1, 0 <= --vary < 1 and "
                f"0 <= --shared_prefix <= 1, got {self.input}, {self.output}, {self.vary} and "
                f"{self.shared}"
            )
        if self.vocab_size <= LEAST_ID:
            raise ValueError(
                f"--vocab_size needs to be above {LEAST_ID}, got {self.vocab_size}; give the model's"
            )
        if self.temperature < 0:
            raise ValueError(f"--temperature needs to be at least 0, got {self.temperature}")

    def bodies(self, count: int, seed: Sequence[int], *, chat: bool) -> Iterator[dict[str, Any]]:
        """The bodies of `count` requests. The same shared prefix for every seed that begins the
        same; the same requests for the same seed.
        """
        rng = np.random.default_rng(list(seed))
        inputs, outputs = (
            _uniform(rng, mean, self.vary, count) for mean in (self.input, self.output)
        )
        longest = round(max(inputs, default=1) * self.shared)
        prefix = self._tokens(np.random.default_rng([seed[0], 2**31]), longest, chat)
        for size, new in zip(inputs, outputs, strict=True):
            begin = prefix[: round(size * self.shared)]
            tokens = begin + self._tokens(rng, size - len(begin), chat)
            body: dict[str, Any] = {"max_tokens": new, "temperature": self.temperature}
            if self.ignore_eos:
                body["ignore_eos"] = True
            yield body | (
                {"messages": [{"role": "user", "content": " ".join(map(str, tokens))}]}
                if chat
                else {"prompt": tokens}
            )

    def _tokens(self, rng: np.random.Generator, count: int, chat: bool) -> list:
        if chat:
            return [WORDS[i] for i in rng.integers(0, len(WORDS), count)]
        return rng.integers(LEAST_ID, self.vocab_size, count).tolist()


@dataclass(frozen=True)
class Dataset:
    """The lines of a file, in its order and again from its beginning."""

    lines: tuple[dict[str, Any], ...]

    @classmethod
    def read(cls, path: Path, *, chat: bool) -> "Dataset":
        """A file of JSON lines, each a request's body: "prompt" (or "messages"), "max_tokens" and
        whatever else the server takes. For a chat, a prompt that is text becomes a user's message.

        ValueError names the line that cannot be sent.
        """
        lines = []
        for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if text.strip():
                lines.append(_line(f"{path} line {number}", text, chat))
        if not lines:
            raise ValueError(f"{path} needs at least one line, got none")
        return cls(tuple(lines))

    def bodies(self, count: int, seed: Sequence[int], *, chat: bool) -> Iterator[dict[str, Any]]:
        """`count` bodies from the beginning; the seed changes nothing."""
        for i in range(count):
            yield dict(self.lines[i % len(self.lines)])


def _line(where: str, text: str, chat: bool) -> dict[str, Any]:
    try:
        body = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} needs to be JSON: {error}") from error
    if not isinstance(body, dict):
        raise ValueError(f"{where} needs a JSON object, got {text[:60]!r}")
    taken = [name for name in RESERVED if name in body]
    if taken:
        raise ValueError(f"{where} must not set {', '.join(taken)}, which this client does")
    if chat and isinstance(body.get("prompt"), str):
        body["messages"] = [{"role": "user", "content": body.pop("prompt")}]
    needed = "messages" if chat else "prompt"
    if not body.get(needed):
        raise ValueError(f"{where} needs {needed!r}, got {sorted(body)}")
    new = body.get("max_tokens", body.get("max_completion_tokens"))
    if type(new) is not int or new < 1:
        raise ValueError(f"{where} needs 'max_tokens' of at least 1, got {new!r}")
    return body


def _uniform(rng: np.random.Generator, mean: int, vary: float, count: int) -> list[int]:
    low, high = (max(1, round(mean * (1 + sign * vary))) for sign in (-1, 1))
    return rng.integers(low, high, count, endpoint=True).tolist()


def poisson(rate: float, count: int, seed: Sequence[int]) -> list[float]:
    """Seconds from the beginning at which `count` requests arrive, `rate` a second on average:
    gaps are exponential and depend on nothing before them.
    """
    return np.cumsum(np.random.default_rng(list(seed)).exponential(1 / rate, count)).tolist()
