"""What an operator decides about a server: names, keys, limits. Checked once."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxinfer.generate import POOLINGS
from jaxinfer.request import MAX_LOGPROBS, MAX_N, MAX_STOP_STRINGS

LEAST_KEY = 8  # characters


@dataclass(frozen=True)
class Settings:
    """Fields:
    name: what the model is called in requests.
    api_keys: any of them opens the API; none leaves it open.
    admin_key: opens the control endpoints; none closes them.
    max_queue: sequences that may wait, besides those that run.
    max_body_bytes, max_prompt_tokens (None: the model's context), max_prompts (of one call),
      max_n, max_logprobs, max_stops, max_new_tokens (None: what fits).
    request_s: time that a call may take from its arrival to its last token; read_s: that its
      body may take to arrive; stall_s: that a step may take before /health fails.
    buffer: tokens that may wait for a slow reader.
    grace_s: what a shutdown gives to calls under way.
    pooling: of embeddings.
    chat_template: options of `Tokenizer.apply_chat_template`; stop: texts that end every answer of
      a chat.
    allowed_hosts: names a request may give as its Host; none allows all.
    """

    name: str
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    admin_key: str | None = field(default=None, repr=False)
    max_queue: int = 256
    max_body_bytes: int = 4 * 2**20
    max_prompt_tokens: int | None = None
    max_prompts: int = 64
    max_n: int = 16
    max_logprobs: int = 20
    max_stops: int = MAX_STOP_STRINGS
    max_new_tokens: int | None = None
    request_s: float = 600.0
    read_s: float = 30.0
    stall_s: float = 120.0
    buffer: int = 4096
    grace_s: float = 30.0
    pooling: str = POOLINGS[0]
    chat_template: Mapping[str, Any] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()

    def __post_init__(self):
        for name, most in (
            ("max_body_bytes", 2**40),
            ("max_prompt_tokens", 2**30),
            ("max_prompts", 2**20),
            ("max_n", MAX_N),
            ("max_stops", MAX_STOP_STRINGS),
            ("max_new_tokens", 2**30),
            ("request_s", 2**30),
            ("read_s", 2**30),
            ("stall_s", 2**30),
            ("buffer", 2**30),
        ):
            value = getattr(self, name)
            if value is not None and not 0 < value <= most:
                raise ValueError(f"{name} needs to be above 0 and at most {most}, got {value}")
        for name, most in (("max_queue", 2**20), ("max_logprobs", MAX_LOGPROBS), ("grace_s", 1e9)):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"{name} needs to be 0 .. {most:g}, got {getattr(self, name)}")
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling needs to be one of {POOLINGS}, got {self.pooling!r}")
        for key in (*self.api_keys, *([] if self.admin_key is None else [self.admin_key])):
            if len(key) < LEAST_KEY or not key.isascii() or not key.isprintable() or " " in key:
                raise ValueError(
                    f"a key needs at least {LEAST_KEY} printable ASCII characters without spaces, "
                    f"got one of {len(key)}; draw one with: openssl rand -hex 16"
                )
        if self.admin_key in self.api_keys:
            raise ValueError("the admin key needs to differ from the API keys; draw another")
