"""What every call needs: the model, its loop and reader, the settings, and how a body becomes
requests. Knows the bodies' fields, nothing of HTTP.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

from jaxinfer.grammar import Grammar
from jaxinfer.grammar.compiler import Compiler
from jaxinfer.model import Model, completions
from jaxinfer.reading import Reader, TokenScore
from jaxinfer.request import MAX_STOP_STRINGS, Followed, Request, SamplingParams
from jaxinfer.server import schemas
from jaxinfer.server.errors import ApiError
from jaxinfer.server.generation import Answer, Generation
from jaxinfer.server.loop import EngineLoop
from jaxinfer.server.metrics import Metrics
from jaxinfer.server.settings import Settings
from jaxinfer.server.token_texts import TokenTexts
from jaxinfer.server.tools import as_template_reads
from jaxinfer.tokenizer import Tokenizer

PLAIN = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "min_tokens",
    "stop_token_ids",
    "ignore_eos",
)  # fields that body and SamplingParams share
Texts = str | list[int] | list[str] | list[list[int]]
READERS = 1  # calls that read whole texts at once, beside the engine


class Service:
    """One model, served. max_length: positions of one sequence."""

    def __init__(
        self, model: Model, loop: EngineLoop, settings: Settings, metrics: Metrics, max_length: int
    ):
        self.model, self.loop, self.settings, self.metrics = model, loop, settings, metrics
        self.max_length = max_length
        self.created = int(time.time())
        self.texts = None if model.tokenizer is None else TokenTexts(model.tokenizer)
        self._reader = Reader(
            model.params,
            model.config,
            model.mesh,
            pooling=settings.pooling,
            kv_dtype=model.kv_dtype,
        )
        self._reading = asyncio.Semaphore(READERS)
        self._compiler: Compiler | None = None
        self._making = asyncio.Lock()

    def close(self) -> None:
        """End the threads that compile grammars."""
        if self._compiler is not None:
            self._compiler.close()

    def check_model(self, name: str | None) -> None:
        if name is not None and name != self.settings.name:
            raise ApiError(
                404,
                f"no model {name!r} here; this server has {self.settings.name!r}",
                param="model",
                code="model_not_found",
            )

    def tokenizer(self, use: str) -> Tokenizer:
        if self.model.tokenizer is None:
            raise ApiError(400, f"{use} needs a tokenizer, and this model has none; send token ids")
        return self.model.tokenizer

    async def read(self, function: Callable[[Reader], Any]) -> Any:
        """function(reader), beside the engine's own work."""
        async with self._reading:
            return await asyncio.to_thread(function, self._reader)

    async def compile(self, name: str, form: Grammar) -> Followed:
        """What the field `name` asks for, in this model's tokens; ApiError where it cannot be
        followed.
        """
        tokenizer = self.tokenizer(name)
        try:
            async with self._making:
                if self._compiler is None:  # it reads the whole vocabulary
                    make = partial(Compiler, tokenizer, vocab_size=self.model.config.vocab_size)
                    self._compiler = await asyncio.to_thread(make)
            return await self._compiler.prepare(form)
        except ValueError as error:
            raise ApiError(400, f"{name}: {error}", param=name) from error

    async def encode(self, text: str, name: str, add_special_tokens: bool = True) -> list[int]:
        tokenizer = self.tokenizer("text")
        ids = await asyncio.to_thread(tokenizer.encode, text, add_special_tokens)
        return self.check_prompt(ids, name)

    async def encode_all(
        self, given: Texts, name: str, *, add_special_tokens: bool = True, room: int = 1
    ) -> list[list[int]]:
        """One text or several, token ids or lists of them: the ids of each."""
        several = [given] if isinstance(given, str) or isinstance(given[0], int) else given
        self.limit(f"the number of texts in {name}", len(several), self.settings.max_prompts)
        return [
            await self.encode(one, name, add_special_tokens)
            if isinstance(one, str)
            else self.check_prompt(cast(list[int], one), name, room)
            for one in several
        ]

    def template(self, tools: Sequence | None = None) -> str:
        """The source of the chat template; "" where there is none."""
        tokenizer, named = self.model.tokenizer, self.settings.chat_template.get("template")
        if tokenizer is None or (named is None and "default" not in tokenizer.chat_templates):
            return ""
        return tokenizer.template_source(named, tools)

    async def encode_chat(
        self, messages: Sequence[dict], tools: Sequence[dict] | None = None, **options
    ) -> list[int]:
        tokenizer = self.tokenizer("a chat")
        template = self.settings.chat_template
        if "template" not in template and "default" not in tokenizer.chat_templates:
            raise ApiError(
                400,
                "this model has no chat template: it was not taught to converse; use "
                "/v1/completions, or start the server with --chat_template=plain",
                param="messages",
                code="no_chat_template",
            )
        taken = {"messages", "tools", "template"} & set(options)
        if taken:
            raise ApiError(
                400,
                f"chat_template_kwargs must not hold {sorted(taken)}",
                param="chat_template_kwargs",
            )
        options = {**template, **options, **({"tools": tools} if tools else {})}
        ids = await asyncio.to_thread(lambda: tokenizer.encode_chat(messages, **options))
        return self.check_prompt(ids, "messages")

    def check_prompt(self, ids: Sequence[int], name: str, room: int = 1) -> list[int]:
        """The ids, where they are ones and leave room for so many tokens."""
        if not ids:
            raise ApiError(400, f"{name} needs at least one token, got none", param=name)
        wrong = max(ids)
        if wrong >= self.model.config.vocab_size:
            raise ApiError(
                400,
                f"{name} needs token ids below {self.model.config.vocab_size}, got {wrong}",
                param=name,
            )
        most = min(self.max_length - room, self.settings.max_prompt_tokens or self.max_length)
        if len(ids) > most:
            raise ApiError(
                400,
                f"{name} needs at most {most} tokens, of {self.max_length} positions in all; got "
                f"{len(ids)}; shorten it",
                param=name,
                code="context_length_exceeded",
            )
        return list(ids)

    def sampling(
        self,
        body: schemas.Common,
        longest: int,
        *,
        max_tokens: int | None,
        max_tokens_name: str,
        logprobs: int | None,
        stop: Sequence[str] = (),
    ) -> SamplingParams:
        """A body's parameters beside a prompt of `longest` tokens. max_tokens None: what fits."""
        settings = self.settings
        room = self.max_length - longest
        most = min(room, settings.max_new_tokens or room)
        if max_tokens is not None and max_tokens > most:
            raise ApiError(
                400,
                f"{max_tokens_name} needs to be at most {most} beside a prompt of {longest} tokens "
                f"({self.max_length} positions in all), got {max_tokens}; ask for fewer",
                param=max_tokens_name,
                code="context_length_exceeded" if max_tokens > room else "limit_exceeded",
            )
        given = {name: getattr(body, name, None) for name in PLAIN}
        given = {name: value for name, value in given.items() if value is not None}
        texts = getattr(body, "stop", None) or []
        texts = [texts] if isinstance(texts, str) else texts
        n = getattr(body, "n", None) or 1
        self.limit("stop", len(texts), min(settings.max_stops, MAX_STOP_STRINGS - len(stop)))
        self.limit("n", n, settings.max_n)
        bias = getattr(body, "logit_bias", None) or {}
        words = ()
        if body.bad_words:
            words = self.tokenizer("bad_words").bad_word_ids(body.bad_words)
        if texts and self.model.tokenizer is None:
            self.tokenizer("stop")
        return SamplingParams(
            **given,
            max_new_tokens=most if max_tokens is None else max_tokens,
            logit_bias={int(token): value for token, value in bias.items()},
            bad_word_ids=words,
            seed=None if body.seed is None else body.seed % 2**64,
            n=n,
            stop=(*texts, *(one for one in stop if one not in texts)),
            logprobs=logprobs,
        )

    def limit(self, name: str, value: int | None, most: int) -> None:
        """Refuse more than this server allows."""
        if value is not None and value > most:
            raise ApiError(
                400,
                f"{name} needs to be at most {most} on this server, got {value}; ask for fewer",
                param=name,
                code="limit_exceeded",
            )

    def generate(
        self,
        call_id: str,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        body: schemas.Common,
        *,
        salt: str = "",
        offsets: bool = False,
        grammar: Followed | None = None,
        show_special: bool = False,
    ) -> Generation:
        """Hand n continuations of each prompt over to the engine. salt: whose cache they share;
        grammar: what they all follow; show_special: special tokens are part of their texts.
        """
        requests = [
            Request(f"{call_id}-{index}", tuple(ids), one, grammar)
            for index, (ids, one) in enumerate(
                (ids, one) for ids in prompts for one in completions(params)
            )
        ]
        for request in requests:
            request.validate(self.model.config.vocab_size, self.max_length)
        answers = [
            Answer(
                index,
                self.model.tokenizer,
                request,
                include_stop=bool(body.include_stop_str_in_output),
                skip_special_tokens=not show_special and body.skip_special_tokens is not False,
                offsets=offsets,
            )
            for index, request in enumerate(requests)
        ]
        self.metrics.prompt_tokens.inc(sum(len(ids) for ids in prompts))
        ticket = self.loop.submit(requests, priority=body.priority or 0, salt=salt)
        return Generation(ticket, answers)

    async def prompt_scores(self, ids: Sequence[int], top_n: int) -> list[TokenScore | None]:
        return await self.read(lambda reader: reader.score(ids, top_n))


def message_dicts(
    messages: Sequence[schemas.Message | schemas.InputMessage],
) -> list[dict[str, Any]]:
    """Messages as a chat template reads them: parts joined, "developer" called "system"."""
    found = []
    for message in messages:
        fields = message.model_dump(exclude_none=True)
        if isinstance(message.content, list):
            fields["content"] = "".join(part.text for part in message.content)
        if message.role == "developer":
            fields["role"] = "system"
        if "tool_calls" in fields:
            fields["tool_calls"] = [as_template_reads(call) for call in fields["tool_calls"]]
        found.append(fields)
    return found
