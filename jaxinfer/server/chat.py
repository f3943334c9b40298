"""/v1/chat/completions."""

import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.types import ASGIApp

from jaxinfer.server import answers, logprobs, structure, tools
from jaxinfer.server.errors import ApiError
from jaxinfer.server.generation import Generation, Piece
from jaxinfer.server.http import DONE, Call, EventStream, event, json_response
from jaxinfer.server.schemas import ChatRequest
from jaxinfer.server.service import Service, message_dicts


async def chat_completions(call: Call) -> ASGIApp:
    """Continue a conversation."""
    service, body = call.service, call.body
    assert isinstance(body, ChatRequest)
    service.check_model(body.model)
    if (
        body.max_tokens
        and body.max_completion_tokens
        and (body.max_tokens != body.max_completion_tokens)
    ):
        raise ApiError(
            400, "max_tokens and max_completion_tokens differ; give one", param="max_tokens"
        )
    if body.top_logprobs and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
    if body.prompt_logprobs is not None and body.stream:
        raise ApiError(400, "prompt_logprobs needs stream: false", param="prompt_logprobs")
    service.limit("top_logprobs", body.top_logprobs, service.settings.max_logprobs)
    service.limit("prompt_logprobs", body.prompt_logprobs, service.settings.max_logprobs)
    options = dict(body.chat_template_kwargs or {})
    if body.add_generation_prompt is not None:
        options["add_generation_prompt"] = body.add_generation_prompt
    manner = tools.manner(body, service.template(body.tools))
    offered = manner.offered or None
    prompt = await service.encode_chat(message_dicts(body.messages), offered, **options)
    params = service.sampling(
        body,
        len(prompt),
        max_tokens=body.max_completion_tokens or body.max_tokens,
        max_tokens_name="max_completion_tokens",
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        stop=service.settings.stop,
    )
    within = manner.begins_within(service.tokenizer("a chat"), prompt)
    name, form = structure.asked(body) or ("tools", None)
    if form is not None and manner.forced is not None:
        raise ApiError(400, f"{name}: a forced call has a form of its own; drop one", param=name)
    form = manner.form(form, within)
    grammar = None if form is None else await service.compile(name, form)
    speeches = [tools.Speech(manner, within) for _ in range(params.n)]
    chat = _Chat(service, body, prompt, speeches)
    chat.generation = service.generate(
        chat.id,
        [prompt],
        params,
        body,
        salt=call.salt,
        grammar=grammar,
        show_special=manner.special(service.tokenizer("a chat")),
    )
    ticket = chat.generation.ticket
    if body.stream:
        return EventStream(call, ticket, chat.chunks(), chat.failed)
    return json_response(await call.collect(ticket, chat.answer()))


class _Chat:
    """One conversation's answer, whole or in chunks."""

    generation: Generation

    def __init__(
        self,
        service: Service,
        body: ChatRequest,
        prompt: list[int],
        speeches: list[tools.Speech],
    ):
        self.id = f"chatcmpl-{secrets.token_hex(12)}"
        self._speeches = speeches
        self._service, self._body, self._prompt = service, body, prompt
        self._created = int(time.time())

    def failed(self, error: ApiError) -> str:
        return event(error.body()) + DONE

    async def answer(self) -> answers.ChatAnswer:
        scores = None
        if self._body.prompt_logprobs is not None:
            found = await self._service.prompt_scores(self._prompt, self._body.prompt_logprobs)
            scores = logprobs.prompt(self._service.texts, found)
        choices = [self._choice(piece) for piece in await self.generation.finish()]
        return answers.ChatAnswer(
            id=self.id,
            created=self._created,
            model=self._service.settings.name,
            choices=choices,
            usage=self._usage(),
            prompt_logprobs=scores,
            prompt_token_ids=self._prompt if self._body.return_token_ids else None,
        )

    def _choice(self, piece: Piece) -> answers.ChatChoice:
        speech = self._speeches[piece.index]
        speech.push(piece.text, last=True)
        return answers.ChatChoice(
            index=piece.index,
            message=speech.message(),
            logprobs=self._logprobs(piece),
            finish_reason=_reason(piece, speech),
            stop_reason=piece.stop_reason,
            token_ids=self._ids(piece),
        )

    async def chunks(self) -> AsyncIterator[str]:
        """Server-sent events: a role for each choice, its text as it comes, the usage if asked."""
        options, begun = self._body.stream_options, set()
        async for pieces in self.generation.pieces():
            for piece in pieces:
                if piece.index not in begun:
                    begun.add(piece.index)
                    yield self._chunk(piece.index, {"role": "assistant", "content": ""})
                speech = self._speeches[piece.index]
                deltas = speech.push(piece.text, last=piece.finish_reason is not None)
                found, ids = self._logprobs(piece), piece
                shown = found is not None or self._body.return_token_ids
                if not deltas and shown and piece.tokens:
                    deltas = [{"content": ""}]
                for delta in deltas:  # the first one holds all that is said of the tokens
                    yield self._chunk(piece.index, delta, found, ids)
                    found = ids = None
                if piece.finish_reason is not None:
                    yield self._chunk(piece.index, {}, None, None, piece)
        if options is not None and options.include_usage:
            yield event({**self._head(), "choices": [], "usage": self._usage().model_dump()})
        yield DONE

    def _head(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._service.settings.name,
        }

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        found: answers.ChatLogprobs | None = None,
        tokens: Piece | None = None,
        last: Piece | None = None,
    ) -> str:
        choice: dict[str, Any] = {
            "index": index,
            "delta": delta,
            "logprobs": None if found is None else found.model_dump(),
            "finish_reason": None if last is None else _reason(last, self._speeches[index]),
        }
        if last is not None:
            choice["stop_reason"] = last.stop_reason
        if tokens is not None and self._body.return_token_ids:
            choice["token_ids"] = self._ids(tokens)
        chunk = {**self._head(), "choices": [choice]}
        options = self._body.stream_options
        if options is not None and (options.include_usage or options.continuous_usage_stats):
            so_far = self._usage().model_dump() if options.continuous_usage_stats else None
            chunk["usage"] = so_far
        return event(chunk)

    def _logprobs(self, piece: Piece) -> answers.ChatLogprobs | None:
        if not self._body.logprobs or self._service.texts is None:
            return None
        return answers.ChatLogprobs(content=logprobs.chat(self._service.texts, piece.tokens))

    def _ids(self, piece: Piece) -> list[int] | None:
        wanted = self._body.return_token_ids
        return [token.token_id for token in piece.tokens] if wanted else None

    def _usage(self) -> answers.Usage:
        return usage(len(self._prompt), self.generation)


def usage(prompt_tokens: int, generation: Generation) -> answers.Usage:
    """Prompts are counted once, whatever n; every generated token counts, a stop token too."""
    new = generation.completion_tokens
    return answers.Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=new,
        total_tokens=prompt_tokens + new,
        prompt_tokens_details=answers.PromptDetails(
            cached_tokens=min(generation.cached_tokens, prompt_tokens)
        ),
    )


def _reason(piece: Piece, speech: tools.Speech) -> answers.ChatReason:
    if piece.finish_reason == "length":
        return "length"
    return "tool_calls" if speech.calls else "stop"
