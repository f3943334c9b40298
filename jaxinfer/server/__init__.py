"""An OpenAI-compatible HTTP server over the engine.

Reading order: `loop` (one thread owns the engine), `generation` (tokens to text), `schemas` and
`answers` (the bodies), `service` (a body to requests), `http` (keys, limits, streams), a file for
each group of calls, `app` (the table of them), `run` (start and end). Needs the extra "serve".
"""

from jaxinfer.server.run import background, build, guarded, listen, serve, url
from jaxinfer.server.service import Service
from jaxinfer.server.settings import Settings

__all__ = [
    "Service",
    "Settings",
    "background",
    "build",
    "guarded",
    "listen",
    "serve",
    "url",
]
