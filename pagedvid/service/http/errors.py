"""Every error in the form of OpenAI's API, {"error": {message, type, param, code}}; the status says whose error it is.

Nothing of a traceback, a path or a prompt leaves the service: what is not an error on purpose is logged, and the client
is told only that it happened.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError, WebSocketRequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection

from pagedvid.errors import (
    CapacityError,
    ConfigError,
    GivenFramesError,
    OverloadError,
    PagedvidError,
    PromptError,
    StartTimeError,
    StateError,
    WorkerError,
)
from pagedvid.service.errors import Busy, Closing, Conflict, NotFound
from pagedvid.shown import short, shown

logger = logging.getLogger(__name__)

MAX_CHARS = 600
_CODES: tuple[tuple[type[PagedvidError], int, str], ...] = (
    (NotFound, 404, "not_found"),
    (Conflict, 409, "conflict"),
    (StateError, 409, "conflict"),
    (Closing, 503, "closing"),
    (Busy, 429, "busy"),
    (OverloadError, 429, "overload"),
    (WorkerError, 503, "worker"),
    (CapacityError, 400, "does_not_fit"),
    (PromptError, 400, "invalid_prompt"),
    (ConfigError, 400, "invalid_value"),
)
"""Status and code of the errors that a client is told; the first class that matches counts."""
_PARAMS: tuple[tuple[type[PagedvidError], str], ...] = (
    (StartTimeError, "start_seconds"),
    (GivenFramesError, "input_reference"),
)
"""The parameter that is at fault for an error; the first class that matches counts."""
_HTTP_CODES = {404: "not_found", 405: "method_not_allowed", 408: "timeout", 413: "too_large"}
"""Codes of what the framework refuses."""
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_PLACES = ("body", "query", "path", "header")


class RequestError(PagedvidError, ValueError):
    """A request that cannot be carried out as it is; the message says what is allowed."""

    def __init__(self, message: str, param: str | None = None, code: str = "invalid_value", status: int = 400) -> None:
        super().__init__(message)
        self.param, self.code, self.status = param, code, status


def error_body(message: str, status: int, code: str | None, param: str | None = None) -> dict[str, Any]:
    """The body of an error."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    message, param = _sendable(short(message, MAX_CHARS)), None if param is None else _sendable(short(param))
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _sendable(text: str) -> str:
    """The text without halves of surrogate pairs, which JSON may bring and UTF-8 cannot carry."""
    return text.encode("utf-8", "replace").decode("utf-8")


def error_response(
    message: str, status: int, code: str | None, param: str | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """An error as a response."""
    return JSONResponse(error_body(message, status, code, param), status, headers=dict(headers or {}))


def response_to(error: PagedvidError) -> JSONResponse:
    """The response to one of the package's own errors; 500, and a line in the log, for one that is no client's."""
    if isinstance(error, RequestError):
        return error_response(str(error), error.status, error.code, error.param)
    for kind, status, code in _CODES:
        if isinstance(error, kind):
            if isinstance(error, Busy):
                return _busy(error, status, code)
            param = next((param for its_kind, param in _PARAMS if isinstance(error, its_kind)), None)
            return error_response(str(error), status, code, param)
    logger.error("%s: %s", type(error).__name__, error)
    return _unexpected()


def _busy(error: Busy, status: int, code: str) -> JSONResponse:
    """With what the limits are, and when to try again."""
    body = error_body(str(error), status, code)
    body["error"]["numbers"] = dict(error.numbers)
    return JSONResponse(body, status, headers={"Retry-After": str(max(1, math.ceil(error.retry_after_seconds)))})


def _unexpected() -> JSONResponse:
    return error_response("internal error; the log of the service says more", 500, "internal")


def add_error_handlers(app: FastAPI) -> None:
    """Every error that leaves the app has the one shape."""

    async def own(connection: HTTPConnection, error: Exception) -> JSONResponse:
        assert isinstance(error, PagedvidError)
        return response_to(error)

    async def invalid(connection: HTTPConnection, error: Exception) -> JSONResponse:
        assert isinstance(error, (RequestValidationError, WebSocketRequestValidationError))
        complaints = error.errors()
        message, param = first_complaint(complaints)
        if complaints[0]["loc"][:1] == ("path",):  # an id that no session can have
            return error_response(f"there is no such id: {message}", 404, "not_found", param)
        return error_response(message, 400, "invalid_value", param)

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        code = _HTTP_CODES.get(error.status_code, "http_error")
        return error_response(_sentence(request, error), error.status_code, code, headers=error.headers)

    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        return _unexpected()  # Starlette raises it again, and the server logs it

    app.add_exception_handler(PagedvidError, own)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(WebSocketRequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, unexpected)


def first_complaint(complaints: Sequence[Any]) -> tuple[str, str | None]:
    """pydantic's first complaint about a request: (what is wrong and what is allowed, the parameter)."""
    first = complaints[0]
    names = [str(part) for part in first.get("loc", ()) if part not in _PLACES]
    param = ".".join(names) or None
    kind, message = first.get("type"), str(first.get("msg", "it is not valid"))
    if kind == "missing":
        return (f"{param} is missing", param) if param else ("the request has no body; give a JSON object", None)
    if kind == "extra_forbidden":
        return f"{short(param or '')} is not a parameter of this call; remove it", param
    if kind == "json_invalid":
        return f"the body is not JSON: {message}", None
    return f"{short(param or 'the body')} is {shown(first.get('input'))}: {message}", param


def _sentence(request: Request, error: HTTPException) -> str:
    if error.status_code == 404:
        return f"there is nothing at {short(request.url.path)}; /docs lists all calls"
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        return f"{short(request.url.path)} does not take {short(request.method)}; use {allowed}"
    return str(error.detail)
