"""The gateway's application: authentication, error bodies and the routes of all groups."""

import json
import logging
from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from . import compute, filesystem, status, transfer
from .errors import GatewayError, ValidationError
from .front import FirecrestHeaders
from .operations import OPERATIONS
from .scheduler import SchedulerError
from .systems import Call, World
from .tokens import Refused

__all__ = ["build"]

_logger = logging.getLogger(__name__)
Handler = Callable[[Call], Response]
_HANDLERS: dict[str, Handler] = {
    **status.HANDLERS,
    **compute.HANDLERS,
    **filesystem.HANDLERS,
    **transfer.HANDLERS,
}


def build(world: World) -> ASGIApp:
    """FirecREST v2 over this world."""
    routes = [Route(OPERATIONS["token"][1], _token(world), methods=["POST"])]
    for name, handler in _HANDLERS.items():
        method, template = OPERATIONS[name]
        routes.append(Route(template, _endpoint(world, handler), methods=[method], name=name))
    app = Starlette(
        routes=routes,
        exception_handlers={
            GatewayError: _refused,
            SchedulerError: _scheduler_failed,
            HTTPException: _not_found,
            Exception: _crashed,
        },
    )
    return FirecrestHeaders(app)


def _endpoint(world: World, handler: Handler) -> Callable[[Request], Any]:
    async def serve(request: Request) -> Response:
        request.state.user = world.tokens.user_of(request.headers.get("authorization"))
        call = await _read(world, request)
        # Handlers touch disks, processes and locks: they run in threads, the loop stays free.
        return await run_in_threadpool(handler, call)

    return serve


async def _read(world: World, request: Request) -> Call:
    params = {key: str(value) for key, value in request.path_params.items()}
    # Calls about no system get any: they do not look at it.
    system = world.system(params["system"]) if "system" in params else next(iter(world.systems.values()))
    query = dict(request.query_params)
    kind = request.headers.get("content-type", "")
    if kind.startswith("multipart/form-data"):
        name, data = await _uploaded(request, system.max_ops_file_size)
        return Call(world, system, params, query, {}, name, data)
    raw = await request.body()
    return Call(world, system, params, query, _json(raw) if raw and request.method != "DELETE" else {})


async def _uploaded(request: Request, limit: int) -> tuple[str, bytes]:
    async with request.form() as form:
        file = form.get("file")
        if file is None or isinstance(file, str):
            raise ValidationError("body", ("file",), "Field required", "missing", None)
        if (file.size or 0) > limit:
            raise GatewayError(413, "File to upload is too large.")
        return file.filename or "", await file.read()


def _json(raw: bytes) -> dict[str, Any]:
    try:
        data = json.loads(raw)
    except ValueError as error:
        raise ValidationError("body", ("0",), "JSON decode error", "json_invalid", str(error)) from None
    if not isinstance(data, dict):
        raise ValidationError("body", ("0",), "Input should be a valid dictionary", "model_type", data)
    return data


def _token(world: World) -> Callable[[Request], Any]:
    async def serve(request: Request) -> Response:
        async with request.form() as form:
            fields = {key: value for key, value in form.items() if isinstance(value, str)}
        try:
            body = world.tokens.grant(fields, request.headers.get("authorization"))
        except Refused as refusal:
            return JSONResponse(refusal.body, status_code=refusal.status)
        return JSONResponse(body, headers={"cache-control": "no-store"})

    return serve


def _user(request: Request) -> str | None:
    return getattr(request.state, "user", None)


def _refused(request: Request, error: Exception) -> Response:
    if not isinstance(error, GatewayError):
        raise error
    return JSONResponse(error.body(_user(request)), status_code=error.status, headers=error.headers)


def _scheduler_failed(request: Request, error: Exception) -> Response:
    if not isinstance(error, SchedulerError):
        raise error
    told = GatewayError(error.status, error.message, caused_by=error.caused_by)
    return JSONResponse(told.body(_user(request)), status_code=told.status)


def _not_found(_request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    told = GatewayError(error.status_code, str(error.detail))
    return JSONResponse(told.body(None), status_code=told.status, headers=error.headers)


def _crashed(_request: Request, error: Exception) -> Response:
    _logger.error("the embedded gateway failed", exc_info=error)
    return JSONResponse(GatewayError(500, str((str(error),))).body(None), status_code=500)
