"""One call's answers as they grow: tokens of a ticket become pieces of text."""

import dataclasses
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from jaxinfer.request import FinishReason, Request, Token
from jaxinfer.server.ticket import Ticket
from jaxinfer.stream import Detokenizer
from jaxinfer.tokenizer import Tokenizer


@dataclass
class Piece:
    """What one batch of tokens added to the answer `index`. offsets: where in the answer's text
    each token begins. finish_reason: set with the last piece.
    """

    index: int
    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class Answer:
    """One continuation: its whole text so far in `whole`."""

    def __init__(
        self,
        index: int,
        tokenizer: Tokenizer | None,
        request: Request,
        *,
        include_stop: bool = False,
        skip_special_tokens: bool = True,
        offsets: bool = False,
    ):
        self.request, self.whole = request, Piece(index)
        self._text = self._unstopped = None
        if tokenizer is not None:
            self._text = Detokenizer(
                tokenizer.decode,
                request.params.stop,
                skip_special_tokens,
                include_stop,
                request.prompt_token_ids,
            )
        if tokenizer is not None and offsets:
            self._unstopped = Detokenizer(
                tokenizer.decode, (), skip_special_tokens, False, request.prompt_token_ids
            )
        self._offset = 0

    def push(self, tokens: Sequence[Token]) -> Piece:
        """What these tokens add; those after the end add nothing."""
        piece = Piece(self.whole.index)
        for token in tokens:
            if self.whole.finish_reason is None and piece.finish_reason is None:
                self._push(token, piece)
        whole = self.whole
        self.whole = dataclasses.replace(
            piece,
            text=whole.text + piece.text,
            tokens=whole.tokens + piece.tokens,
            offsets=whole.offsets + piece.offsets,
        )
        return piece

    def _push(self, token: Token, piece: Piece) -> None:
        piece.tokens.append(token)
        piece.offsets.append(self._offset)
        reason = token.finish_reason
        if reason is FinishReason.STOP:  # a stop token's own text is not part of the answer
            if token.token_id in self.request.params.stop_token_ids:
                piece.stop_reason = token.token_id
        elif self._text is not None:
            piece.text += self._text.push(token.token_id)
            if self._unstopped is not None:
                self._offset += len(self._unstopped.push(token.token_id))
        if self._text is not None:
            if self._text.stopped is None and reason is not None:
                piece.text += self._text.finish()
            if self._text.stopped is not None:
                reason, piece.stop_reason = FinishReason.STOP, self._text.stopped
        piece.finish_reason = None if reason is None else str(reason)


class Generation:
    """The answers of one ticket."""

    def __init__(self, ticket: Ticket, answers: Sequence[Answer]):
        self.ticket, self.answers = ticket, list(answers)

    async def pieces(self) -> AsyncIterator[list[Piece]]:
        """What each batch of tokens added, one piece for each answer it belongs to."""
        async for events in self.ticket.batches():
            tokens: dict[int, list[Token]] = {}
            for index, token in events:
                tokens.setdefault(index, []).append(token)
            pieces = [self.answers[index].push(found) for index, found in tokens.items()]
            for piece in pieces:
                if piece.finish_reason is not None:
                    self.ticket.finish(piece.index)
            yield pieces

    async def finish(self) -> list[Piece]:
        """Every answer, whole."""
        async for _ in self.pieces():
            pass
        return [answer.whole for answer in self.answers]

    @property
    def completion_tokens(self) -> int:
        return sum(len(answer.whole.tokens) for answer in self.answers)

    @property
    def cached_tokens(self) -> int:
        """Tokens of prompts that were found in the cache."""
        return sum(sequence.reused for sequence in self.ticket.sequences)
