"""What bounds a plan."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """slots: sequences at once. max_length: positions of one sequence. chunk: prompt tokens of one
    sequence in one step; budget: of all. decode_steps: tokens decoded before the host looks again,
    where nobody reads a prompt or could begin to. endless: the ring may wrap, so that max_length
    does not bound a sequence. rope_switch: the length at which a sequence's rope changes
    (longrope), or 0. rope_follows: it changes with every token (dynamic), so that tokens are read
    again one at a time.
    reuse: a slot remembers what its last sequence left in the cache, and a prompt that asks for it
    and begins the same starts there; at most `rollback` positions may be forgotten again (what a
    wrapped ring still holds beyond its window).
    queue: how many sequences may wait; None: any number.
    """

    slots: int
    max_length: int
    chunk: int = 512
    budget: int = 2048
    decode_steps: int = 8
    endless: bool = False
    rope_switch: int = 0
    rope_follows: bool = False
    reuse: bool = False
    rollback: int = 0
    queue: int | None = None

    def __post_init__(self):
        for name in ("slots", "max_length", "chunk", "budget", "decode_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} needs to be at least 1, got {getattr(self, name)}")
        if self.queue is not None and self.queue < 1:
            raise ValueError(f"queue needs to be at least 1 or None, got {self.queue}")


class QueueFull(RuntimeError):
    """As many requests wait as may; come again later."""
