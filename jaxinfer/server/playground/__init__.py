"""The page at /: files served as they are, under a policy that lets them reach this server only.

The page speaks to the same API as everybody else; this module knows nothing of it.
"""

from importlib import resources

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
PAGE = "index.html"


def routes() -> list[Route]:
    """The page at / and its parts under /playground."""
    found = []
    for file in sorted(resources.files(__name__).iterdir(), key=lambda file: file.name):
        kind = TYPES.get(file.name.rpartition(".")[2])
        if kind is not None:
            path = "/" if file.name == PAGE else f"/playground/{file.name}"
            found.append(_route(path, file.read_bytes(), kind))
    return found


def _route(path: str, content: bytes, kind: str) -> Route:
    async def serve(request: Request) -> Response:
        return Response(content, headers=HEADERS, media_type=kind)

    return Route(path, serve, methods=["GET"], include_in_schema=False)
