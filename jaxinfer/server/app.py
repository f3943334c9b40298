"""The table of endpoints, and the ASGI application made of it."""

import contextlib
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from jaxinfer.server import answers, control, openapi, playground, schemas
from jaxinfer.server.chat import chat_completions
from jaxinfer.server.completions import completions
from jaxinfer.server.errors import ApiError
from jaxinfer.server.http import Call, Endpoint, Handled
from jaxinfer.server.responses import responses
from jaxinfer.server.service import Service
from jaxinfer.server.texts import detokenize, embeddings, tokenize


async def document(call: Call) -> ASGIApp:
    """This API as an OpenAPI document."""
    return JSONResponse(openapi.describe(ENDPOINTS))


ENDPOINTS = (
    Endpoint(
        "POST",
        "/v1/chat/completions",
        chat_completions,
        "Continue a conversation",
        body=schemas.ChatRequest,
        answer=answers.ChatAnswer,
        streams=True,
    ),
    Endpoint(
        "POST",
        "/v1/completions",
        completions,
        "Continue texts or token ids",
        body=schemas.CompletionRequest,
        answer=answers.CompletionAnswer,
        streams=True,
    ),
    Endpoint(
        "POST",
        "/v1/responses",
        responses,
        "Answer a text or a conversation",
        body=schemas.ResponseRequest,
        answer=answers.ResponseAnswer,
        streams=True,
    ),
    Endpoint(
        "POST",
        "/v1/embeddings",
        embeddings,
        "Texts as vectors",
        body=schemas.EmbeddingRequest,
        answer=answers.EmbeddingAnswer,
    ),
    Endpoint(
        "POST",
        "/tokenize",
        tokenize,
        "Token ids of a text or a conversation",
        body=schemas.TokenizeRequest,
        answer=answers.TokenizeAnswer,
    ),
    Endpoint(
        "POST",
        "/detokenize",
        detokenize,
        "Text of token ids",
        body=schemas.DetokenizeRequest,
        answer=answers.DetokenizeAnswer,
    ),
    Endpoint("GET", "/v1/models", control.models, "Models served", answer=answers.ModelList),
    Endpoint("GET", "/v1/models/{name:path}", control.model, "One model", answer=answers.ModelCard),
    Endpoint("GET", "/health", control.health, "Alive?", "open", answer=answers.Status),
    Endpoint("GET", "/ready", control.ready, "Taking calls?", "open", answer=answers.Status),
    Endpoint("GET", "/metrics", control.metrics, "For Prometheus"),
    Endpoint("POST", "/admin/pause", control.pause, "Rest", "admin", answer=answers.Status),
    Endpoint("POST", "/admin/resume", control.resume, "Go on", "admin", answer=answers.Status),
    Endpoint(
        "POST", "/admin/abort", control.abort, "End all calls", "admin", answer=answers.Aborts
    ),
    Endpoint("GET", "/openapi.json", document, "This document", answer=answers.Document),
)


def application(service: Service) -> Starlette:
    """An ASGI application over a service; its lifespan starts and stops the engine's loop."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        service.loop.start()
        try:
            yield
        finally:
            await service.loop.stop()
            service.close()

    routes = [
        Route(one.path, Handled(one, service), methods=[one.method], name=one.handler.__name__)
        for one in ENDPOINTS
    ]
    routes += playground.routes()
    return Starlette(
        routes=routes, lifespan=lifespan, exception_handlers={HTTPException: _unrouted}
    )


async def _unrouted(request: Request, error: Exception) -> Response:
    """A path or a method that is not here."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    if error.status_code == 405:
        return ApiError(
            405, f"{path} does not take {request.method}", headers=dict(error.headers or {})
        ).response()
    known = ", ".join(endpoint.path for endpoint in ENDPOINTS)
    return ApiError(404, f"nothing at {path}; there are {known}", code="not_found").response()
