"""What an engine tells about itself."""

from dataclasses import dataclass

from jaxinfer.scheduler import Sequence


@dataclass(frozen=True)
class Stats:
    """What an engine is doing and has done. running, waiting: sequences now. pages, pages_used: of
    all groups of layers, 0 where slots own their places; pages_kept: nobody's, but still to be
    found. prompt_tokens: of sequences that entered a slot; prefix_tokens: those of them found in
    the cache. preemptions: how often a sequence gave way; swaps_out: how often what it had went to
    the host, swaps_in: and came back, swap_bytes_out, swap_bytes_in: in all; swap_size: the host's
    room for it in bytes, swap_used: of it now. steps: dispatched. failures: steps that
    raised. compiled: programs.
    """

    running: int
    waiting: int
    slots: int
    pages: int
    pages_used: int
    pages_kept: int
    prompt_tokens: int
    prefix_tokens: int
    generated_tokens: int
    preemptions: int
    swaps_out: int
    swaps_in: int
    swap_bytes_out: int
    swap_bytes_in: int
    swap_size: int
    swap_used: int
    steps: int
    failures: int
    compiled: int


class StepFailed(RuntimeError):
    """A step raised, and again with one of its sequences alone: `sequences` are lost; the engine
    goes on with the others, unless `Engine.failed`.
    """

    def __init__(self, message: str, sequences: tuple[Sequence, ...]):
        super().__init__(message)
        self.sequences = sequences
