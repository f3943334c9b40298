"""A model with its tokenizer: text in, text out. What most programs want.

`Model` keeps engines with device memory between calls and lends one to each call that runs; calls
from several threads each get their own. Everything below it works on token ids.
"""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from jax.sharding import Mesh

from jaxinfer import compile_cache, quantize, sharding, shipped, weights
from jaxinfer.cache import KVDtype, kv_dtype_of
from jaxinfer.config import ModelConfig
from jaxinfer.engine import Engine, bucket
from jaxinfer.models import decoder
from jaxinfer.request import (
    Completion,
    FinishReason,
    Followed,
    Request,
    SamplingParams,
    Token,
)
from jaxinfer.scheduler import Limits
from jaxinfer.step import Programs, Scorer
from jaxinfer.stream import Detokenizer
from jaxinfer.tokenizer import Tokenizer

Prompt = str | Sequence[int]
Message = Mapping[str, Any]
MAX_SLOTS = 64  # sequences at once; further ones wait
CONVERSATION = 4096  # positions that a chat has room for before its cache must move
KEPT_ENGINES = 2  # idle engines whose memory is kept for the next call
KEPT_SIZES = 16  # sizes of engines whose compiled programs are kept


@dataclass(frozen=True)
class Stream:
    """Where generated text may go on without end: the first `sinks` positions and the latest
    `window` are kept (StreamingLLM, Xiao et al. 2023).
    """

    window: int = 1024
    sinks: int = 4

    def __post_init__(self):
        if self.window < 1 or self.sinks < 0:
            raise ValueError(
                f"a stream needs window >= 1 and sinks >= 0, got {self.window=}, {self.sinks=}"
            )


@dataclass(frozen=True)
class TextChunk:
    """What one token added: `text` may be empty while a character or a possible stop string is held
    back.

    index: which prompt (or which of its n completions) it belongs to; completion: set with the last
    chunk.
    """

    index: int
    text: str
    token: Token
    completion: Completion | None = None


@dataclass(frozen=True)
class Scored:
    """token_ids, and the log-probability of each given those before it; None for the first."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float | None, ...]


class Model:
    """Parameters, config and (optionally) a tokenizer.

    max_slots: how many sequences run at once. chunk: prompt tokens of one sequence per step.
    kv_dtype: what the cache holds, of `cache.KV_DTYPES`; None is the parameters' dtype, float32 on
    CPU. Where it is given, `score` too reads through such a cache, as generating does.
    """

    def __init__(
        self,
        params: decoder.Params,
        config: ModelConfig,
        tokenizer: Tokenizer | None = None,
        *,
        mesh: Mesh | None = None,
        max_slots: int = MAX_SLOTS,
        chunk: int = 512,
        decode_steps: int = 8,
        kv_dtype: KVDtype | None = None,
    ):
        if kv_dtype is not None:
            kv_dtype_of(kv_dtype)
        self.kv_dtype: KVDtype | None = kv_dtype
        params = decoder.prepare(params)
        self.params, self.config, self.tokenizer, self.mesh = params, config, tokenizer, mesh
        self._limits = Limits(
            slots=max_slots, max_length=1, chunk=chunk, decode_steps=decode_steps, reuse=True
        )
        self._scorer = Scorer(params, config, mesh, kv_dtype=kv_dtype)
        self._idle: list[tuple[tuple, Engine]] = []
        self._programs: dict[tuple, Programs] = {}
        self._lock = threading.Lock()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | None = None,
        *,
        stream: Stream | None = None,
        grammar: Followed | None = None,
        **settings,
    ) -> list[Completion]:
        """Continue one prompt or several (text or token ids): a completion each, `n` of them in a
        row where n > 1.

        grammar: what each must follow, compiled for this model's tokens (`jaxinfer.grammar`).
        settings: fields of SamplingParams, in place of or on top of `params`.
        """
        found: dict[int, Completion] = {}
        for chunk in self.stream(prompts, params, stream=stream, grammar=grammar, **settings):
            if chunk.completion is not None:
                found[chunk.index] = chunk.completion
        return [found[index] for index in sorted(found)]

    def stream(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | None = None,
        *,
        stream: Stream | None = None,
        reuse: bool = False,
        grammar: Followed | None = None,
        **settings,
    ) -> Generator[TextChunk, None, None]:
        """As `generate`, a token at a time. Closing the iterator stops the generation.

        reuse: start from what the last such call left in the cache, where this prompt begins the
        same.
        """
        params = dataclasses.replace(params or SamplingParams(), **settings)
        ids = [self.encode(prompt) for prompt in _several(prompts)]
        return self._stream(ids, params, stream, reuse=reuse, grammar=grammar)

    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        template: Mapping[str, Any] | None = None,
        grammar: Followed | None = None,
        **settings,
    ) -> Completion:
        """The assistant's answer to `messages`; template: options of
        `Tokenizer.apply_chat_template`; grammar: as in `generate`.

        The cache keeps the conversation: the next call reads only what is new.
        """
        chunks = self.stream_chat(messages, params, template=template, grammar=grammar, **settings)
        (completion,) = (chunk.completion for chunk in chunks if chunk.completion is not None)
        return completion

    def stream_chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        template: Mapping[str, Any] | None = None,
        grammar: Followed | None = None,
        **settings,
    ) -> Generator[TextChunk, None, None]:
        """As `chat`, a token at a time."""
        params = dataclasses.replace(params or SamplingParams(), **settings, n=1)
        ids = self._need_tokenizer("chat").encode_chat(messages, **(template or {}))
        return self._stream([ids], params, None, reuse=True, grammar=grammar)

    def score(self, prompts: Prompt | Sequence[Prompt]) -> list[Scored]:
        """The log-probability of every token of each text, by the model's raw logits."""
        return [
            Scored(tuple(ids), (None, *(float(x) for x in self._scorer(ids)[1:])))
            for ids in (self.encode(prompt) for prompt in _several(prompts))
        ]

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt, which may be ids already.

        ValueError for text where there is no tokenizer, or no ids.
        """
        ids = (
            self._need_tokenizer("text").encode(prompt)
            if isinstance(prompt, str)
            else [int(i) for i in prompt]
        )
        if not ids:
            raise ValueError(
                "a prompt needs at least one token, got an empty one; begin with any text"
            )
        wrong = [i for i in ids if not 0 <= i < self.config.vocab_size]
        if wrong:
            raise ValueError(
                f"token ids need to be in 0 .. {self.config.vocab_size - 1}, got {wrong[:5]}"
            )
        return ids

    def _need_tokenizer(self, use: str) -> Tokenizer:
        if self.tokenizer is None:
            raise ValueError(
                f"{use} needs a tokenizer, and this model has none (no tokenizer.json); pass token ids"
            )
        return self.tokenizer

    def _stream(
        self,
        prompts,
        params: SamplingParams,
        stream: Stream | None,
        *,
        reuse: bool,
        grammar: Followed | None,
    ) -> Generator[TextChunk, None, None]:
        begin = time.perf_counter()
        if params.bad_words:
            words = self._need_tokenizer("bad_words").bad_word_ids(params.bad_words)
            params = dataclasses.replace(
                params, bad_words=(), bad_word_ids=(*params.bad_word_ids, *words)
            )
        requests = [
            Request(str(index), tuple(ids), one, grammar)
            for index, (ids, one) in enumerate(
                (ids, one) for ids in prompts for one in completions(params)
            )
        ]
        longest = max(len(r.prompt_token_ids) for r in requests) + params.max_new_tokens
        if stream is None and longest > self.config.max_position:
            raise ValueError(
                f"prompt and max_new_tokens need to fit the model's {self.config.max_position} positions, "
                f"got {longest}; shorten one, or pass stream=Stream(...) to keep only the latest"
            )
        with self._borrow(
            len(requests), max(longest, CONVERSATION if reuse else 0), stream
        ) as engine:
            texts = [_Text(self.tokenizer, r, begin) for r in requests]
            sequences = []
            try:
                for request in requests:
                    sequences.append(engine.add(request, reuse=reuse))
                while not engine.idle:
                    for token in engine.step():
                        index = int(token.request_id)
                        if texts[index].completion is None:
                            text, completion = texts[index].push(token)
                            if completion is not None:
                                engine.abort(sequences[index])
                            yield TextChunk(index, text, token, completion)
            finally:
                for sequence in sequences:
                    engine.abort(sequence)
                engine.drain()

    @contextlib.contextmanager
    def _borrow(self, requests: int, longest: int, stream: Stream | None) -> Iterator[Engine]:
        """An engine of the right size, an idle one where there is one."""
        slots = bucket(requests, 1, self._limits.slots)
        if stream is None:
            length = bucket(min(longest, self.config.max_position), 256, self.config.max_position)
        else:
            length = stream.sinks + stream.window + self._limits.chunk - 1
        with self._lock:
            fits = [
                (key, engine)
                for key, engine in self._idle
                if key[0] == slots and key[2] == stream and key[1] >= length
            ]
            if fits:
                self._idle.remove(fits[0])
        if fits:
            key, engine = fits[0]
        else:
            key = (slots, length, stream)
            limits = dataclasses.replace(
                self._limits, slots=slots, max_length=length, endless=stream is not None
            )
            window, sinks = (None, 0) if stream is None else (stream.window, stream.sinks)
            eos_ids = () if self.tokenizer is None else self.tokenizer.eos_ids
            engine = Engine(
                self.params,
                self.config,
                limits,
                mesh=self.mesh,
                kv_dtype=self.kv_dtype,
                eos_ids=eos_ids,
                stream_window=window,
                sinks=sinks,
                programs=self._programs_of(key),
            )
        try:
            yield engine
        except GeneratorExit:  # the caller has heard enough
            self._keep(key, engine)
            raise
        self._keep(key, engine)

    def _programs_of(self, key: tuple) -> Programs:
        """Those of an engine of this size, which may be gone: its memory is large, they are not."""
        with self._lock:
            programs = self._programs.pop(key, None) or Programs(
                self.params, self.config, self.mesh
            )
            self._programs = {**self._programs, key: programs}
            for oldest in list(self._programs)[:-KEPT_SIZES]:
                del self._programs[oldest]
        return programs

    def _keep(self, key: tuple, engine: Engine) -> None:
        with self._lock:
            self._idle = [(key, engine), *self._idle][:KEPT_ENGINES]


class _Text:
    """One completion as it grows."""

    def __init__(self, tokenizer: Tokenizer | None, request: Request, begin: float):
        self.completion: Completion | None = None
        self._request, self._begin, self._first = request, begin, 0.0
        self._tokens: list[Token] = []
        params = request.params
        if tokenizer is None and params.stop:
            raise ValueError(
                "stop strings need a tokenizer, and this model has none; use stop_token_ids"
            )
        self._detokenizer = None
        if tokenizer is not None:
            self._detokenizer = Detokenizer(
                tokenizer.decode, params.stop, prompt_ids=request.prompt_token_ids
            )

    def push(self, token: Token) -> tuple[str, Completion | None]:
        """The text that a token makes safe to show, and the completion if it was the last."""
        now = time.perf_counter()
        self._first = self._first or now
        self._tokens.append(token)
        text, reason = "", token.finish_reason
        ends = reason is FinishReason.STOP  # a stop token's own text is not part of the answer
        if self._detokenizer is not None:
            text = "" if ends else self._detokenizer.push(token.token_id)
            if self._detokenizer.stopped is not None:
                reason = FinishReason.STOP
            elif reason is not None:
                text += self._detokenizer.finish()
        if reason is not None:
            self.completion = self._complete(reason, now)
        return text, self.completion

    def _complete(self, reason: FinishReason, now: float) -> Completion:
        tokens, asked = self._tokens, self._request.params.logprobs is not None
        spent = now - self._first
        return Completion(
            prompt_token_ids=self._request.prompt_token_ids,
            token_ids=tuple(t.token_id for t in tokens),
            text="" if self._detokenizer is None else self._detokenizer.text,
            finish_reason=reason,
            logprobs=tuple(t.logprob for t in tokens if t.logprob is not None) if asked else None,
            top_logprobs=tuple(t.top_logprobs for t in tokens if t.top_logprobs is not None)
            if asked
            else None,
            index=int(self._request.id),
            ttft_s=self._first - self._begin,
            decode_tokens_per_s=(len(tokens) - 1) / spent
            if len(tokens) > 1 and spent > 0
            else None,
        )


def _several(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or many -> many."""
    if isinstance(prompts, str):
        return [prompts]
    if all(isinstance(p, (int, np.integer)) for p in prompts):
        return [cast(Sequence[int], prompts)]
    return list(cast(Sequence[Prompt], prompts))


def completions(params: SamplingParams) -> list[SamplingParams]:
    """The n completions of one prompt: the first keeps the seed, the others have their own."""
    if params.n == 1:
        return [params]
    seeds: list[int | None] = [params.seed] * params.n
    if params.seed is not None:
        children = np.random.SeedSequence(params.seed).generate_state(params.n, np.uint64)
        seeds = [params.seed, *(int(x) for x in children[1:])]
    return [dataclasses.replace(params, n=1, seed=seed) for seed in seeds]


def load(
    path_or_hub_id: str | Path | None = None,
    *,
    dtype=None,
    mesh: Mesh | str | None = None,
    quantize: quantize.Method | quantize.Recipe | None = None,
    progress: bool = True,
    **options,
) -> Model:
    """A model from a folder (Hugging Face layout or our Orbax form), a hub id, or None: the one
    that ships with us.

    dtype: None keeps the checkpoint's on accelerators and means float32 on CPU. mesh: a Mesh, or
    "data=2,model=4".
    quantize: a method of `jaxinfer.quantize`, applied while loading. options: of `Model`, such as
    kv_dtype="int8" for a cache of half the size. Compiled
    programs are kept on disk (`compile_cache.enable`). Raises FileNotFoundError or ValueError with
    what is wrong; nothing is half-loaded.
    """
    compile_cache.enable()
    if path_or_hub_id is None:
        path_or_hub_id = shipped.target()
    if mesh is not None and not isinstance(mesh, Mesh):
        mesh = sharding.make_mesh(mesh)
    loaded = weights.load(
        path_or_hub_id, dtype=dtype, mesh=mesh, quantize=quantize, show_progress=progress
    )
    tokenizer = (
        Tokenizer.load(loaded.folder) if (loaded.folder / "tokenizer.json").exists() else None
    )
    return Model(loaded.params, loaded.config, tokenizer, mesh=mesh, **options)
