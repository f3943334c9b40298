"""/v1/responses: text in, text out; nothing is stored."""

import secrets
import time
from collections.abc import AsyncIterator
from typing import Any, Literal

from starlette.types import ASGIApp

from jaxinfer.request import SamplingParams
from jaxinfer.server import answers, logprobs, structure
from jaxinfer.server.errors import ApiError
from jaxinfer.server.generation import Generation, Piece
from jaxinfer.server.http import Call, EventStream, event, json_response
from jaxinfer.server.schemas import ResponseRequest
from jaxinfer.server.service import Service, message_dicts

State = Literal["in_progress", "completed", "incomplete", "failed"]


async def responses(call: Call) -> ASGIApp:
    """Answer a text or a conversation."""
    service, body = call.service, call.body
    assert isinstance(body, ResponseRequest)
    service.check_model(body.model)
    service.limit("top_logprobs", body.top_logprobs, service.settings.max_logprobs)
    prompt = await service.encode_chat(_messages(body))
    wanted = bool(body.include) or bool(body.top_logprobs)
    params = service.sampling(
        body,
        len(prompt),
        max_tokens=body.max_output_tokens,
        max_tokens_name="max_output_tokens",
        logprobs=(body.top_logprobs or 0) if wanted else None,
        stop=service.settings.stop,
    )
    form = structure.asked(body)
    grammar = None if form is None else await service.compile(*form)
    response = _Response(service, body, prompt, params)
    response.generation = service.generate(
        response.id, [prompt], params, body, salt=call.salt, grammar=grammar
    )
    ticket = response.generation.ticket
    if body.stream:
        return EventStream(call, ticket, response.events(), response.failed)
    return json_response(await call.collect(ticket, response.answer()))


def _messages(body: ResponseRequest) -> list[dict[str, Any]]:
    found = [] if body.instructions is None else [{"role": "system", "content": body.instructions}]
    if isinstance(body.input, str):
        return [*found, {"role": "user", "content": body.input}]
    kept = [{"role": m["role"], "content": m["content"]} for m in message_dicts(body.input)]
    return [*found, *kept]


def _format(body: ResponseRequest) -> dict[str, Any]:
    """The form of the text, as it was asked for."""
    if body.text is None or body.text.format is None:
        return {"type": "text"}
    return body.text.format.model_dump(by_alias=True, exclude_none=True)


class _Response:
    """One answer, whole or as the events of a stream."""

    generation: Generation

    def __init__(
        self, service: Service, body: ResponseRequest, prompt: list[int], params: SamplingParams
    ):
        self.id = f"resp_{secrets.token_hex(12)}"
        self._item = f"msg_{secrets.token_hex(12)}"
        self._service, self._body, self._prompt, self._params = service, body, prompt, params
        self._created, self._sent = int(time.time()), 0

    async def answer(self) -> answers.ResponseAnswer:
        (piece,) = await self.generation.finish()
        return self._ended(piece)

    async def events(self) -> AsyncIterator[str]:
        """The events of a stream, in OpenAI's order."""
        place = {"item_id": self._item, "output_index": 0, "content_index": 0}
        begun = False
        async for pieces in self.generation.pieces():
            if not begun:
                begun = True
                running = self._describe("in_progress", []).model_dump()
                yield self._event("response.created", response=running)
                yield self._event("response.in_progress", response=running)
                item = self._message("in_progress", []).model_dump()
                yield self._event("response.output_item.added", output_index=0, item=item)
                part = answers.OutputText(text="").model_dump()
                yield self._event("response.content_part.added", **place, part=part)
            for piece in pieces:
                found = [one.model_dump() for one in self._logprobs(piece)]
                if piece.text or found:
                    yield self._event(
                        "response.output_text.delta", **place, delta=piece.text, logprobs=found
                    )
        whole = self._ended(self.generation.answers[0].whole)
        (message,) = whole.output
        (part,) = message.content
        said = part.model_dump()
        yield self._event(
            "response.output_text.done", **place, text=part.text, logprobs=said["logprobs"]
        )
        yield self._event("response.content_part.done", **place, part=said)
        yield self._event("response.output_item.done", output_index=0, item=message.model_dump())
        yield self._event(f"response.{whole.status}", response=whole.model_dump())

    def failed(self, error: ApiError) -> str:
        failure = answers.ResponseFailure(code=error.code or "server_error", message=error.message)
        response = self._describe("failed", []).model_copy(update={"error": failure})
        return self._event("response.failed", response=response.model_dump())

    def _event(self, kind: str, **fields) -> str:
        number, self._sent = self._sent, self._sent + 1
        return event({"type": kind, "sequence_number": number, **fields}, kind)

    def _ended(self, piece: Piece) -> answers.ResponseAnswer:
        cut = piece.finish_reason == "length"
        state: Literal["incomplete", "completed"] = "incomplete" if cut else "completed"
        part = answers.OutputText(text=piece.text, logprobs=self._logprobs(piece))
        before, new = len(self._prompt), self.generation.completion_tokens
        cached = min(self.generation.cached_tokens, before)
        update = {
            "incomplete_details": answers.IncompleteDetails() if cut else None,
            "usage": answers.ResponseUsage(
                input_tokens=before,
                input_tokens_details=answers.InputDetails(cached_tokens=cached),
                output_tokens=new,
                total_tokens=before + new,
            ),
        }
        return self._describe(state, [self._message(state, [part])]).model_copy(update=update)

    def _message(
        self,
        state: Literal["in_progress", "completed", "incomplete"],
        content: list[answers.OutputText],
    ) -> answers.OutputMessage:
        return answers.OutputMessage(id=self._item, status=state, content=content)

    def _describe(
        self, state: State, output: list[answers.OutputMessage]
    ) -> answers.ResponseAnswer:
        body = self._body
        return answers.ResponseAnswer(
            id=self.id,
            created_at=self._created,
            status=state,
            instructions=body.instructions,
            max_output_tokens=body.max_output_tokens,
            model=self._service.settings.name,
            output=output,
            temperature=self._params.temperature,
            text=answers.ResponseText(format=_format(body)),
            top_p=self._params.top_p,
            user=body.user,
            metadata=body.metadata or {},
        )

    def _logprobs(self, piece: Piece) -> list[answers.TokenLogprob]:
        if self._params.logprobs is None or self._service.texts is None:
            return []
        return logprobs.chat(self._service.texts, piece.tokens)
