"""Grammars compiled for one tokenizer, and matchers that follow one sequence each (llguidance).

Compiling happens on threads of its own: they have large stacks, because a chain of a thousand
references overflows an ordinary one, and a caller waits for them only so long. Compiled grammars
are kept by content. A mask holds exactly the tokens after which the grammar can still be completed
(no token is forced for the sake of a canonical tokenization).
"""

import asyncio
import json
import re
import threading
import time
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as Late
from typing import Any

import numpy as np

from jaxinfer.grammar.description import Grammar
from jaxinfer.grammar.vocabulary import token_bytes
from jaxinfer.tokenizer import Tokenizer

try:
    import llguidance
except ImportError as cause:
    raise ImportError("grammars need llguidance: pip install 'jaxinfer[structured]'") from cause

STACK_BYTES = 2**27  # of a compiling thread: address space, touched only by deep grammars
MAX_MASK_S = 0.25  # of processor time; a grammar whose masks take longer is given up
# Between tokens of a JSON value: enough for indented output, and no endless blanks.
JSON_OPTIONS = {"whitespace_pattern": r"\n?[ \t]{0,64}"}
_HEADER = '%llguidance {"no_forcing": true}\n'
_LIMITS = llguidance.LLParserLimits(
    max_items_in_row=8000,
    step_lexer_fuel=100_000,
    max_lexer_states=32_000,
    verbose_errors=False,
)


class GrammarError(ValueError):
    """A grammar that cannot be compiled, or a sequence that has left it."""


class Compiler:
    """Turns descriptions into what requests carry, for the tokens of one model.

    vocab_size: V of the model's logits. workers: threads that compile. timeout_s: how long a caller
    waits. kept: how many grammars are remembered, the latest used ones.

    ValueError where the tokenizer names no EOS token: nothing could end an answer.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        vocab_size: int,
        workers: int = 2,
        timeout_s: float = 10.0,
        kept: int = 64,
    ):
        self.vocab_size, self._timeout_s, self._kept = vocab_size, timeout_s, kept
        tokens, special = token_bytes(tokenizer, vocab_size)
        eos = [token for token in tokenizer.eos_ids if token < vocab_size]
        if not eos:
            raise ValueError(
                "grammar: required a tokenizer with an EOS token; received one without; name it in "
                "tokenizer_config.json or generation_config.json"
            )
        self._special = {tokens[token][1:].decode(errors="replace"): token for token in special}
        self._tokens = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(_Tokens(tokens, special, eos[0])), eos_token=eos
        )
        self._lock = threading.Lock()
        self._known: OrderedDict[str, Future[Compiled]] = OrderedDict()
        self._pool = _pool(workers)

    def submit(self, grammar: Grammar) -> "Future[Compiled]":
        """Begin to compile, unless that has been done; GrammarError is in the future."""
        with self._lock:
            future = self._known.get(grammar.key)
            if future is None:
                future = self._known[grammar.key] = self._pool.submit(self._compile, grammar)
            self._known.move_to_end(grammar.key)
            while len(self._known) > self._kept:
                self._known.popitem(last=False)
        return future

    def compile(self, grammar: Grammar) -> "Compiled":
        """What a request carries. GrammarError: malformed, never satisfiable, or too slow."""
        try:
            return self.submit(grammar).result(self._timeout_s)
        except Late as cause:
            raise self._late(grammar) from cause

    async def prepare(self, grammar: Grammar) -> "Compiled":
        """As `compile`, without holding up an asyncio loop."""
        future = asyncio.wrap_future(self.submit(grammar))
        try:  # shielded: others may wait for the same one
            return await asyncio.wait_for(asyncio.shield(future), self._timeout_s)
        except TimeoutError as cause:
            raise self._late(grammar) from cause

    def close(self) -> None:
        """End the threads, after what they are at."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _late(self, grammar: Grammar) -> GrammarError:
        return GrammarError(
            f"{grammar.kind}: required a grammar that compiles within {self._timeout_s:g} s; "
            "received one that takes longer; simplify it, or try again when less is to do"
        )

    def _compile(self, grammar: Grammar) -> "Compiled":
        source = llguidance.LLMatcher.grammar_from_lark(_HEADER + self._lark(grammar))
        matcher = llguidance.LLMatcher(self._tokens, source, log_level=0, limits=_LIMITS)
        compiled = Compiled(matcher, self.vocab_size, frozenset(self._tokens.eos_tokens))
        try:
            if matcher.is_error():
                raise GrammarError(_reason(matcher))
            compiled.matcher().mask()
        except GrammarError as cause:
            raise GrammarError(
                f"{grammar.kind}: required one that can be followed; received {cause}; change it"
            ) from cause
        return compiled

    def _lark(self, grammar: Grammar) -> str:
        body = _body(grammar)
        free = ""
        if grammar.free_until in self._special:
            free, body = "free", f"{body}\nfree: ANY {self._text(grammar.free_until)}\n{_ANY}"
        elif grammar.free_until:
            ending = json.dumps(grammar.free_until, ensure_ascii=False)
            free, body = "free", f"{body}\nfree[suffix={ending}]: {_ANYTHING}"
        prefix, suffix = self._text(grammar.prefix), self._text(grammar.suffix)
        if not (free or prefix or suffix) and grammar.kind == "lark":
            return grammar.source
        return f"start: {free} {prefix} body {suffix}\n{body}\n"

    def _text(self, text: str) -> str:
        """Lark for a text, or for the special token of this name."""
        if text in self._special:
            return f"<[{self._special[text]}]>"
        return _quoted(text)


_ANYTHING = "/(?s:.*)/"
_ANY = f"ANY: {_ANYTHING}"


class Compiled:
    """A grammar over one vocabulary; as many sequences as wanted follow it."""

    def __init__(self, matcher: Any, vocab_size: int, eos_ids: frozenset[int]):
        self._matcher, self.vocab_size, self._eos_ids = matcher, vocab_size, eos_ids

    def matcher(self) -> "Matcher":
        """One sequence's, at its beginning."""
        return Matcher(self._matcher.deep_copy(), self.vocab_size, self._eos_ids)


class Matcher:
    """Where one sequence stands in a grammar. finished: its EOS has come."""

    def __init__(self, matcher: Any, vocab_size: int, eos_ids: frozenset[int]):
        self._matcher, self._eos_ids = matcher, eos_ids
        self._words, self._taken = -(-vocab_size // 32), 0
        self.finished = False

    def mask(self, out: np.ndarray | None = None) -> np.ndarray:
        """The tokens that may come next: [ceil(V / 32)] uint32, token t is bit t % 32 of word
        t // 32. EOS is among them where the answer may end. Written to `out` where given.

        GrammarError where there is none, or the grammar is too hard to follow.
        """
        out = np.empty((self._words,), np.uint32) if out is None else out
        assert out.shape == (self._words,)
        assert out.dtype == np.uint32
        assert out.flags.c_contiguous
        began = time.thread_time()
        self._matcher.unsafe_compute_mask_ptr(out.ctypes.data, out.nbytes)
        took = time.thread_time() - began
        if self._matcher.is_error():
            raise GrammarError(_reason(self._matcher))
        if took > MAX_MASK_S:
            raise GrammarError(f"a mask that took {took:.2f} s, of at most {MAX_MASK_S:g}")
        if not out.any():
            raise GrammarError("a place where no token of this vocabulary can follow")
        return out

    def advance(self, token: int) -> None:
        """The sequence has gone on by `token`; GrammarError where it must not."""
        if self.finished:
            raise GrammarError(f"token {token} after the end")
        if token in self._eos_ids:  # which llguidance could not take back
            if not self._matcher.is_accepting():
                raise GrammarError(f"token {token}, which ends the answer too early")
            self.finished = True
        elif not self._matcher.consume_token(token):
            raise GrammarError(_reason(self._matcher))
        self._taken += 1

    def rollback(self, count: int) -> None:
        """Forget the last `count` tokens."""
        if not 0 <= count <= self._taken:
            raise ValueError(
                f"rollback: required 0 to {self._taken} tokens, as many as came; received {count}; "
                "take back fewer"
            )
        if count > self.finished and not self._matcher.rollback(count - self.finished):
            raise GrammarError(_reason(self._matcher))
        self._taken -= count
        self.finished = self.finished and not count


class _Tokens:
    """What llguidance asks of a tokenizer. It is called only to find canonical tokens of forced
    text, which masks here do without: so its bytes stand for themselves.
    """

    bos_token_id = None

    def __init__(self, tokens: list[bytes], special_token_ids: list[int], eos_token_id: int):
        self.tokens, self.special_token_ids = tokens, special_token_ids
        self.eos_token_id = eos_token_id
        single = {text[0]: token for token, text in enumerate(tokens) if len(text) == 1}
        self._single = single

    def __call__(self, text: bytes) -> list[int]:
        return [self._single[byte] for byte in bytes(text) if byte in self._single]


def _pool(workers: int) -> ThreadPoolExecutor:
    """An executor whose threads all exist, with large stacks."""
    pool = ThreadPoolExecutor(workers, "grammar")
    everybody = threading.Barrier(workers)
    before = threading.stack_size(STACK_BYTES)
    try:
        for _ in range(workers):
            pool.submit(everybody.wait)
    finally:
        threading.stack_size(before)
    return pool


def _reason(matcher: Any) -> str:
    """llguidance's words, without its state and the source around the place."""
    said = re.split(r"\n\s*(?:\d+ \||<)", matcher.get_error())[0]
    if said.startswith("NoExtension"):
        return "one that no text satisfies"
    return " ".join(said.split())[:500]


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _json(schema: Any) -> str:
    return "%json " + json.dumps({**schema, "x-guidance": JSON_OPTIONS}, ensure_ascii=False)


def _body(grammar: Grammar) -> str:
    """The rule `body`."""
    if grammar.kind == "json_schema":
        return f"body: {_json(json.loads(grammar.source))}"
    if grammar.kind == "choice":
        return "body: " + " | ".join(_literal(text) for text in json.loads(grammar.source))
    if grammar.kind == "lark":
        return f"body: %lark {{\n{grammar.source}\n}}"
    if grammar.kind == "regex":
        found = json.loads(llguidance.LLMatcher.grammar_from_regex(grammar.source))
        return "body" + found["grammars"][0]["lark_grammar"].removeprefix("start")
    wanted = json.loads(grammar.source)
    calls = [
        " ".join(
            [
                _literal(f'{{"name": {_literal(name)}, "{wanted["arguments"]}": '),
                _json(schema),
                _literal("}"),
            ]
        )
        for name, schema in wanted["tools"]
    ]
    before, after = ("[", "]") if wanted["as_list"] else ("", "")
    parts = [
        _quoted(wanted["padding"] + before),
        "(" + " | ".join(calls) + ")",
        _quoted(after + wanted["padding"]),
    ]
    return "body: " + " ".join(part for part in parts if part)


def _quoted(text: str) -> str:
    return _literal(text) if text else ""
