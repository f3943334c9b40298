"""Log-probabilities in the shapes of the two APIs."""

import math
from collections.abc import Sequence

from jaxinfer.reading import TokenScore
from jaxinfer.request import Token
from jaxinfer.server import answers
from jaxinfer.server.token_texts import TokenTexts

LEAST = -9999.0  # what OpenAI's API says in place of minus infinity, which JSON lacks


def finite(value: float | None) -> float:
    return value if value is not None and math.isfinite(value) else LEAST


def chat(texts: TokenTexts, tokens: Sequence[Token]) -> list[answers.TokenLogprob]:
    """One entry a token."""

    def entry(token_id: int, value: float | None) -> dict:
        return {
            "token": texts.text(token_id),
            "logprob": finite(value),
            "bytes": texts.data(token_id),
        }

    return [
        answers.TokenLogprob(
            **entry(token.token_id, token.logprob),
            top_logprobs=[answers.TopLogprob(**entry(*pair)) for pair in token.top_logprobs or ()],
        )
        for token in tokens
    ]


def completion(
    texts: TokenTexts, tokens: Sequence[Token], offsets: Sequence[int]
) -> answers.CompletionLogprobs:
    """Four lists, one entry a token in each."""
    return answers.CompletionLogprobs(
        tokens=[texts.text(token.token_id) for token in tokens],
        token_logprobs=[finite(token.logprob) for token in tokens],
        top_logprobs=[
            _named(texts, ((token.token_id, token.logprob or 0.0), *(token.top_logprobs or ())))
            for token in tokens
        ],
        text_offset=list(offsets),
    )


def echoed(
    texts: TokenTexts, ids: Sequence[int], scores: Sequence[TokenScore | None]
) -> answers.CompletionLogprobs:
    """The prompt's part of a completion that begins with it; its first token has none."""
    offsets, at = [], 0
    growing = texts.growing()
    for token_id in ids:
        offsets.append(at)
        at += len(growing.push(token_id))
    return answers.CompletionLogprobs(
        tokens=[texts.text(token_id) for token_id in ids],
        token_logprobs=[None if one is None else finite(one.logprob) for one in scores],
        top_logprobs=[
            None if one is None else _named(texts, ((one.token_id, one.logprob), *one.top))
            for one in scores
        ],
        text_offset=offsets,
    )


def prompt(texts: TokenTexts | None, scores: Sequence[TokenScore | None]) -> answers.PromptLogprobs:
    """vLLM's prompt_logprobs: {token id: ...} of each token and the likeliest in its place."""
    found: answers.PromptLogprobs = []
    for one in scores:
        if one is None:
            found.append(None)
            continue
        ranked = {id: (value, rank) for rank, (id, value) in enumerate(one.top, 1)}
        ranked[one.token_id] = (one.logprob, one.rank)
        found.append(
            {
                str(id): answers.PromptLogprob(
                    logprob=finite(value),
                    rank=rank,
                    decoded_token="" if texts is None else texts.text(id),
                )
                for id, (value, rank) in ranked.items()
            }
        )
    return found


def _named(texts: TokenTexts, pairs: Sequence[tuple[int, float]]) -> dict[str, float]:
    """{text: log-probability}; of two tokens with one text, the likelier."""
    found: dict[str, float] = {}
    for token_id, value in pairs:
        text = texts.text(token_id)
        found[text] = max(finite(value), found.get(text, LEAST))
    return found
