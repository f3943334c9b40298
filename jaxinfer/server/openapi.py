"""The server's own description, from the endpoints and their schemas (OpenAPI 3.1)."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from jaxinfer.server.answers import ErrorAnswer
from jaxinfer.server.http import Endpoint
from jaxinfer.version import __version__

ERRORS = {
    400: "A wrong value, by its name",
    401: "No valid key",
    403: "Not open to this caller",
    404: "No such model",
    408: "The body or its reader is too slow",
    413: "The body is too large",
    415: "The body is not JSON",
    429: "The queue is full; see Retry-After",
    500: "The server failed at this call",
    503: "Starting, resting or shutting down",
    504: "It took too long",
}
PROBES = ("/health", "/ready")
REF = "#/components/schemas/{model}"


def describe(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """The whole document."""
    models: list[type[BaseModel]] = [ErrorAnswer]
    for endpoint in endpoints:
        models += [one for one in (endpoint.body, endpoint.answer) if one is not None]
    _, schemas = models_json_schema(
        [(one, "validation") for one in dict.fromkeys(models)], ref_template=REF
    )
    paths: dict[str, Any] = {}
    for endpoint in endpoints:
        path = endpoint.path.replace(":path", "")  # how the router says "slashes too"
        paths.setdefault(path, {})[endpoint.method.lower()] = _operation(endpoint)
    return {
        "openapi": "3.1.0",
        "info": {"title": "jaxinfer", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    probe = endpoint.path in PROBES
    statuses = {200: "Done", **({503: "Not so"} if probe else ERRORS)}
    operation: dict[str, Any] = {
        "summary": endpoint.summary,
        "operationId": endpoint.handler.__name__,
        "responses": {
            str(status): {
                "description": text,
                "content": _content(endpoint, status == 200 or probe),
            }
            for status, text in statuses.items()
        },
    }
    if endpoint.guard != "open":
        # an API without keys is open to all
        operation["security"] = [{"key": []}] + [{}] * (endpoint.guard == "key")
    if endpoint.body is not None:
        schema = {"$ref": REF.format(model=endpoint.body.__name__)}
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schema}},
        }
    if "{name" in endpoint.path:
        where = {"name": "name", "in": "path", "required": True}
        operation["parameters"] = [{**where, "schema": {"type": "string", "minLength": 1}}]
    return operation


def _content(endpoint: Endpoint, good: bool) -> dict[str, Any]:
    model = endpoint.answer if good else ErrorAnswer
    if model is None:
        return {"text/plain": {"schema": {"type": "string"}}}
    content: dict[str, Any] = {
        "application/json": {"schema": {"$ref": REF.format(model=model.__name__)}}
    }
    if good and endpoint.streams:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    return content
