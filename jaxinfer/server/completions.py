"""/v1/completions."""

import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.types import ASGIApp

from jaxinfer.reading import TokenScore
from jaxinfer.server import answers, logprobs, structure
from jaxinfer.server.chat import usage
from jaxinfer.server.errors import ApiError
from jaxinfer.server.generation import Generation, Piece
from jaxinfer.server.http import DONE, Call, EventStream, event, json_response
from jaxinfer.server.schemas import CompletionRequest
from jaxinfer.server.service import Service

DEFAULT_MAX_TOKENS = 16  # OpenAI's


async def completions(call: Call) -> ASGIApp:
    """Continue texts or token ids."""
    service, body = call.service, call.body
    assert isinstance(body, CompletionRequest)
    service.check_model(body.model)
    _check(service, body)
    prompts = await service.encode_all(
        body.prompt,
        "prompt",
        add_special_tokens=body.add_special_tokens is not False,
        room=0 if body.max_tokens == 0 else 1,
    )
    completion = _Completion(service, body, prompts)
    if body.max_tokens == 0:
        completion.scores = await completion.score()
        return json_response(completion.echo_alone())
    params = service.sampling(
        body,
        max(map(len, prompts)),
        max_tokens=DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens,
        max_tokens_name="max_tokens",
        logprobs=body.logprobs,
    )
    service.limit("prompt x n", len(prompts) * params.n, service.settings.max_prompts)
    form = structure.asked(body)
    grammar = None if form is None else await service.compile(*form)
    completion.generation = service.generate(
        completion.id,
        prompts,
        params,
        body,
        salt=call.salt,
        offsets=body.logprobs is not None,
        grammar=grammar,
    )
    ticket = completion.generation.ticket
    if body.stream:
        return EventStream(call, ticket, completion.chunks(), completion.failed)
    return json_response(await call.collect(ticket, completion.answer()))


def _check(service: Service, body: CompletionRequest) -> None:
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise ApiError(
            400,
            f"best_of: only best_of = n is supported, got {body.best_of} and n = {body.n or 1}",
            param="best_of",
            code="unsupported_parameter",
        )
    if body.max_tokens == 0 and (not body.echo or body.stream):
        raise ApiError(400, "max_tokens: 0 needs echo: true and stream: false", param="max_tokens")
    if body.stream and body.prompt_logprobs is not None:
        raise ApiError(400, "prompt_logprobs needs stream: false", param="prompt_logprobs")
    if body.stream and body.echo and body.logprobs is not None:
        raise ApiError(400, "echo with logprobs needs stream: false", param="echo")
    service.limit("logprobs", body.logprobs, service.settings.max_logprobs)
    service.limit("prompt_logprobs", body.prompt_logprobs, service.settings.max_logprobs)


class _Completion:
    """The answers to one call, whole or in chunks; choice i continues prompt i // n."""

    generation: Generation | None = None
    scores: list[list[TokenScore | None]] | None = None

    def __init__(self, service: Service, body: CompletionRequest, prompts: list[list[int]]):
        self.id = f"cmpl-{secrets.token_hex(12)}"
        self._service, self._body, self._prompts = service, body, prompts
        self._created = int(time.time())
        self._n = body.n or 1

    def failed(self, error: ApiError) -> str:
        return event(error.body()) + DONE

    async def score(self) -> list[list[TokenScore | None]] | None:
        """What the model makes of the prompts, where that is asked for."""
        body = self._body
        wanted = [body.logprobs if body.echo else None, body.prompt_logprobs]
        counts = [count for count in wanted if count is not None]
        if not counts:
            return None
        return [await self._service.prompt_scores(ids, max(counts)) for ids in self._prompts]

    async def answer(self) -> answers.CompletionAnswer:
        assert self.generation is not None
        self.scores = await self.score()
        pieces = await self.generation.finish()
        return self._whole([self._choice(piece) for piece in pieces])

    def echo_alone(self) -> answers.CompletionAnswer:
        """The prompts, and nothing new."""
        empty = [
            Piece(index, finish_reason="length") for index in range(len(self._prompts) * self._n)
        ]
        return self._whole([self._choice(piece) for piece in empty])

    def _whole(self, choices: list[answers.CompletionChoice]) -> answers.CompletionAnswer:
        return answers.CompletionAnswer(
            id=self.id,
            created=self._created,
            model=self._service.settings.name,
            choices=choices,
            usage=self._usage(),
        )

    def _choice(self, piece: Piece) -> answers.CompletionChoice:
        ids = self._prompts[piece.index // self._n]
        scores = None if self.scores is None else self.scores[piece.index // self._n]
        wanted = self._body.prompt_logprobs
        said = None
        if wanted is not None and scores is not None:
            said = logprobs.prompt(self._service.texts, _first(scores, wanted))
        return answers.CompletionChoice(
            index=piece.index,
            text=self._echo(piece.index) + piece.text,
            logprobs=self._logprobs(piece, scores),
            finish_reason="length" if piece.finish_reason == "length" else "stop",
            stop_reason=piece.stop_reason,
            token_ids=self._ids(piece),
            prompt_token_ids=ids if self._body.return_token_ids else None,
            prompt_logprobs=said,
        )

    def _echo(self, index: int) -> str:
        """The prompt's own text, where it is wanted."""
        if not self._body.echo:
            return ""
        given = self._body.prompt
        if isinstance(given, str):
            return given
        one = given[index // self._n]
        if isinstance(one, str):
            return one
        tokenizer = self._service.model.tokenizer
        return "" if tokenizer is None else tokenizer.decode(self._prompts[index // self._n])

    def _logprobs(
        self, piece: Piece, scores: list[TokenScore | None] | None = None
    ) -> answers.CompletionLogprobs | None:
        texts, count = self._service.texts, self._body.logprobs
        if count is None or texts is None:
            return None
        offset = len(self._echo(piece.index))
        new = logprobs.completion(texts, piece.tokens, [offset + at for at in piece.offsets])
        if not self._body.echo or scores is None:
            return new
        before = logprobs.echoed(
            texts, self._prompts[piece.index // self._n], _first(scores, count)
        )
        return answers.CompletionLogprobs(
            tokens=before.tokens + new.tokens,
            token_logprobs=before.token_logprobs + new.token_logprobs,
            top_logprobs=before.top_logprobs + new.top_logprobs,
            text_offset=before.text_offset + new.text_offset,
        )

    async def chunks(self) -> AsyncIterator[str]:
        """Server-sent events: text as it comes, the usage if asked for."""
        assert self.generation is not None
        options, begun = self._body.stream_options, set()
        async for pieces in self.generation.pieces():
            for piece in pieces:
                text = piece.text
                if piece.index not in begun:
                    begun.add(piece.index)
                    text = self._echo(piece.index) + text
                found = self._logprobs(piece)
                shown = found is not None or self._body.return_token_ids
                if text or piece.finish_reason is not None or (shown and piece.tokens):
                    yield self._chunk(piece, text, found)
        if options is not None and options.include_usage:
            yield event({**self._head(), "choices": [], "usage": self._usage().model_dump()})
        yield DONE

    def _head(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self._created,
            "model": self._service.settings.name,
        }

    def _chunk(self, piece: Piece, text: str, found: answers.CompletionLogprobs | None) -> str:
        choice: dict[str, Any] = {
            "index": piece.index,
            "text": text,
            "logprobs": None if found is None else found.model_dump(),
            "finish_reason": piece.finish_reason,
            "stop_reason": piece.stop_reason,
        }
        if self._body.return_token_ids:
            choice["token_ids"] = self._ids(piece)
        chunk = {**self._head(), "choices": [choice]}
        options = self._body.stream_options
        if options is not None and (options.include_usage or options.continuous_usage_stats):
            so_far = self._usage().model_dump() if options.continuous_usage_stats else None
            chunk["usage"] = so_far
        return event(chunk)

    def _ids(self, piece: Piece) -> list[int] | None:
        wanted = self._body.return_token_ids
        return [token.token_id for token in piece.tokens] if wanted else None

    def _usage(self) -> answers.Usage:
        prompt_tokens = sum(map(len, self._prompts))
        if self.generation is None:
            return answers.Usage(
                prompt_tokens=prompt_tokens, completion_tokens=0, total_tokens=prompt_tokens
            )
        return usage(prompt_tokens, self.generation)


def _first(scores: list[TokenScore | None], count: int) -> list[TokenScore | None]:
    """The scores with so many alternatives in each."""
    return [
        None if one is None else TokenScore(one.token_id, one.logprob, one.rank, one.top[:count])
        for one in scores
    ]
