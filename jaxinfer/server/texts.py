"""Calls that generate nothing: /v1/embeddings, /tokenize, /detokenize."""

import base64

import numpy as np
from starlette.types import ASGIApp

from jaxinfer.server import answers
from jaxinfer.server.errors import ApiError
from jaxinfer.server.http import Call, json_response
from jaxinfer.server.schemas import DetokenizeRequest, EmbeddingRequest, TokenizeRequest
from jaxinfer.server.service import message_dicts


async def embeddings(call: Call) -> ASGIApp:
    """Texts as vectors of length 1."""
    service, body = call.service, call.body
    assert isinstance(body, EmbeddingRequest)
    service.check_model(body.model)
    service.limit("dimensions", body.dimensions, service.model.config.d_model)
    texts = await service.encode_all(body.input, "input", room=0)
    found = []
    for index, ids in enumerate(texts):
        vector = await service.read(lambda reader, ids=ids: reader.embed(ids))
        vector = _shortened(vector, body.dimensions)
        shown = vector.tolist()
        if body.encoding_format == "base64":
            shown = base64.b64encode(vector.astype("<f4").tobytes()).decode()
        found.append(answers.Embedding(index=index, embedding=shown))
    count = sum(map(len, texts))
    used = answers.EmbeddingUsage(prompt_tokens=count, total_tokens=count)
    return json_response(
        answers.EmbeddingAnswer(data=found, model=service.settings.name, usage=used)
    )


def _shortened(vector: np.ndarray, count: int | None) -> np.ndarray:
    """Its first numbers, scaled to length 1 again."""
    if count is None:
        return vector
    norm = np.linalg.norm(vector[:count])
    return vector[:count] / (norm if norm > 0 else 1.0)


async def tokenize(call: Call) -> ASGIApp:
    """Token ids of a text or a conversation."""
    service, body = call.service, call.body
    assert isinstance(body, TokenizeRequest)
    service.check_model(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise ApiError(400, "needs one of prompt and messages", param="prompt")
    if body.messages is not None:
        options = dict(body.chat_template_kwargs or {})
        if body.add_generation_prompt is not None:
            options["add_generation_prompt"] = body.add_generation_prompt
        ids = await service.encode_chat(message_dicts(body.messages), **options)
    else:
        tokenizer = service.tokenizer("text")
        ids = tokenizer.encode(body.prompt or "", body.add_special_tokens is not False)
    names = None
    if body.return_token_strs and service.texts is not None:
        names = [service.texts.text(token_id) for token_id in ids]
    return json_response(
        answers.TokenizeAnswer(
            count=len(ids), max_model_len=service.max_length, tokens=ids, token_strs=names
        )
    )


async def detokenize(call: Call) -> ASGIApp:
    """Text of token ids."""
    service, body = call.service, call.body
    assert isinstance(body, DetokenizeRequest)
    service.check_model(body.model)
    tokenizer = service.tokenizer("text")
    text = tokenizer.decode(body.tokens, skip_special_tokens=False)
    return json_response(answers.DetokenizeAnswer(prompt=text))
