"""Errors in the shape that OpenAI's API gives them: {"error": {message, type, param, code}}."""

from typing import Any

from pydantic import ValidationError
from starlette.responses import JSONResponse

from jaxinfer.scheduler import QueueFull
from jaxinfer.server.loop import Unavailable
from jaxinfer.server.schemas import UNSUPPORTED
from jaxinfer.server.ticket import Aborted, Cause

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}
RETRY_S = 1  # what clients are asked to wait
CAUSES = {
    Cause.CLIENT: 499,
    Cause.SLOW: 408,
    Cause.TIMEOUT: 504,
    Cause.SHUTDOWN: 503,
    Cause.CONTROL: 503,
    Cause.ENGINE: 500,
    Cause.SEQUENCE: 500,
}


class ApiError(Exception):
    """A refusal with its HTTP status."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        kind = TYPES.get(
            self.status, "invalid_request_error" if self.status < 500 else "server_error"
        )
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status, self.headers)


def as_api_error(error: Exception) -> ApiError | None:
    """The refusal that an exception means to a client; None where it is our own fault."""
    match error:
        case ApiError():
            return error
        case QueueFull():
            wait = {"Retry-After": str(RETRY_S)}
            return ApiError(429, str(error), code="queue_full", headers=wait)
        case Unavailable():
            wait = {"Retry-After": str(RETRY_S)}
            return ApiError(503, str(error), code="unavailable", headers=wait)
        case Aborted():
            return ApiError(CAUSES[error.cause], str(error), code=str(error.cause))
        case ValueError():  # what the library says of a wrong value begins with the name of it
            name = str(error).partition(":")[0]
            return ApiError(400, str(error), param=name if name.isidentifier() else None)
    return None


def refusal(error: ValidationError) -> ApiError:
    """What is wrong with a body, the first thing of it, by the field's name."""
    found = error.errors(include_url=False, include_context=False)
    first = found[0]
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body needs to be JSON: {first['msg']}", code="invalid_json")
    if not first["loc"]:
        return ApiError(400, f"the body needs to be a JSON object: {first['msg']}")
    name = str(first["loc"][0])
    about = [one for one in found if one["loc"][0] == name]
    path = max((_path(one["loc"]) for one in about), key=_depth)
    worst = [one for one in about if _path(one["loc"]) == path]
    unknown = worst[0]["type"] == "extra_forbidden"
    if name in UNSUPPORTED and first["type"] != "missing":
        return ApiError(
            400, f"{name}: {UNSUPPORTED[name]}", param=name, code="unsupported_parameter"
        )
    if unknown:
        return ApiError(400, f"unknown field {path!r}", param=path, code="unknown_field")
    said = " or ".join(dict.fromkeys(one["msg"] for one in worst[:8]))
    return ApiError(400, f"{path}: {said}", param=path)


def _depth(path: str) -> int:
    """How far into the body a path leads; of a union's members, the one that came furthest is the
    one that was meant.
    """
    return path.count("[") + path.count(".")


def _path(location: tuple[int | str, ...]) -> str:
    """messages[0].content, without the names of a union's members."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif not text:
            text = part
        elif part not in ("str", "int") and part.isidentifier() and part.islower():
            text += f".{part}"
    return text
