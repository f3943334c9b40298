"""Calls about the server itself: models, health, metrics, and what an operator may do."""

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from jaxinfer.server import answers
from jaxinfer.server.http import Call, json_response
from jaxinfer.server.service import Service
from jaxinfer.server.ticket import Cause


def _card(service: Service) -> answers.ModelCard:
    return answers.ModelCard(
        id=service.settings.name, created=service.created, max_model_len=service.max_length
    )


async def models(call: Call) -> ASGIApp:
    """The models of this server: one."""
    return json_response(answers.ModelList(data=[_card(call.service)]))


async def model(call: Call) -> ASGIApp:
    """The model of this name."""
    call.service.check_model(call.request.path_params["name"])
    return json_response(_card(call.service))


async def health(call: Call) -> ASGIApp:
    """200 while steps make progress or there is nothing to do; otherwise 503."""
    loop = call.service.loop
    status = "healthy" if loop.healthy else f"unhealthy: {loop.cause or 'no progress'}"
    return JSONResponse({"status": status}, 200 if loop.healthy else 503)


async def ready(call: Call) -> ASGIApp:
    """200 where calls are taken; otherwise 503: it compiles, rests, shuts down or is dead."""
    loop = call.service.loop
    status = "paused" if loop.paused else str(loop.state)
    return JSONResponse({"status": status}, 200 if loop.ready else 503)


async def metrics(call: Call) -> ASGIApp:
    """Prometheus' text format."""
    return Response(call.service.metrics.render(), media_type=CONTENT_TYPE_LATEST)


async def pause(call: Call) -> ASGIApp:
    """Make no more steps; calls wait."""
    await call.service.loop.pause()
    return json_response(answers.Status(status="paused"))


async def resume(call: Call) -> ASGIApp:
    """Go on."""
    await call.service.loop.resume()
    return json_response(answers.Status(status="ready"))


async def abort(call: Call) -> ASGIApp:
    """End every call under way with an error."""
    count = call.service.loop.abort_all(Cause.CONTROL, "the operator ended this call")
    return json_response(answers.Aborts(aborted=count))
