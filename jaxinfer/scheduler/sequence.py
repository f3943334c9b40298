"""One request on its way."""

from dataclasses import dataclass, field
from typing import Any

from jaxinfer.pages import Holding, Parked
from jaxinfer.request import FinishReason, Matcher, Request


@dataclass(eq=False)
class Sequence:
    """rank: priority, then arrival; the lowest goes first. salt: with whom it may share pages.
    index: which of its request's n continuations. seed: of its draws, where the request has none.

    prompt: what is to be read; where a sequence must be read again, its tokens are part of it.
    visits: how often it entered a slot. reused: positions found in the cache when it last did.
    parked: what the host keeps for it while it waits. names: of the pages of what is known, see
    `pages.names`. computed: positions planned into the cache. planned, tokens: tokens asked for,
    received. matcher: where it stands in its grammar, if it follows one; mask: the tokens that may
    come next there. suspect: it was in a step that failed, and in none that went well since.
    """

    request: Request
    eos_ids: tuple[int, ...]
    rank: tuple[int, int] = (0, 0)
    salt: str = ""
    index: int = 0
    seed: int | None = None
    reuse: bool = False
    slot: int = -1
    visits: int = 0
    reused: int = 0
    holding: Holding | None = None
    parked: Parked | None = None
    names: list[bytes] = field(default_factory=list)
    prompt: tuple[int, ...] = ()
    computed: int = 0
    planned: int = 0
    tokens: list[int] = field(default_factory=list)
    finished: bool = False
    stop_ids: frozenset[int] = frozenset()
    matcher: Matcher | None = None
    mask: Any = None
    suspect: bool = False

    def __post_init__(self):
        self.prompt = self.request.prompt_token_ids
        params = self.request.params
        eos_ids = () if params.ignore_eos else self.eos_ids
        self.stop_ids = frozenset(params.stop_token_ids).union(eos_ids)
        if self.request.grammar is not None:
            self.matcher = self.request.grammar.matcher()
            self.mask = self.matcher.mask()

    @property
    def prefilling(self) -> bool:
        return self.computed < len(self.prompt)

    @property
    def settled(self) -> bool:
        """Whether every token asked for has come."""
        return self.planned == len(self.tokens)

    @property
    def held(self) -> bool:
        """Whether its next mask depends on tokens that have not come."""
        return self.matcher is not None and not self.settled

    @property
    def left(self) -> int:
        """How many tokens may still be asked for."""
        return self.request.params.max_new_tokens - self.planned

    @property
    def known(self) -> tuple[int, ...]:
        """Prompt and tokens so far."""
        return self.since(0)

    def since(self, position: int) -> tuple[int, ...]:
        """What is known from `position` on."""
        prompt = self.request.prompt_token_ids
        return prompt[position:] + tuple(self.tokens[max(0, position - len(prompt)) :])

    @property
    def written(self) -> int:
        """How many positions the cache surely holds once all that is planned has run: not the last
        token, after which the device may have stopped.
        """
        known = len(self.request.prompt_token_ids) + len(self.tokens)
        return max(min(self.computed, len(self.prompt)), min(self.computed, known - 1))

    def take(self, token_id: int) -> tuple[FinishReason | None, str | None]:
        """Go on by a sampled token: why that ends the sequence, and what went wrong with its
        grammar.
        """
        self.tokens.append(token_id)
        if token_id in self.stop_ids:
            return FinishReason.STOP, None
        last = len(self.tokens) >= self.request.params.max_new_tokens
        if self.matcher is not None:
            try:
                self.matcher.advance(token_id)
                if self.matcher.finished:
                    return FinishReason.STOP, None
                self.mask = None if last else self.matcher.mask()
            except Exception as error:  # whatever a grammar raises is its own request's affair
                return FinishReason.ERROR, f"the grammar failed: {error}"
        return (FinishReason.LENGTH if last else None), None
