"""What an engine tells about itself."""

from dataclasses import dataclass

from jaxinfer.scheduler import Sequence


@dataclass(frozen=True)
class Stats:
    """What an engine is doing and has done. running, waiting: sequences now. pages, pages_used: of
    all groups of layers, 0 where slots own their places; pages_kept: nobody's, but still to be
    found. prompt_tokens: of sequences that entered a slot; prefix_tokens: those of them found in
    the cache. preemptions: how often a sequence gave way. steps: dispatched. failures: steps that
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
