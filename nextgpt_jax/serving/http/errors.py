"""Errors as OpenAI's API reports them: a status, and {"error": {"message", "type", "param", "code"}}."""

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from nextgpt_jax.errors import UserError, printable
from nextgpt_jax.serving.answers import Cancelled, QueueFull, TimedOut

_log = logging.getLogger(__name__)
_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A request that is refused, or an answer that failed.

    Attributes:
      message: one line, for the client.
      status: of HTTP.
      param: the field that is meant.
      code: what a program can tell errors apart by.
      headers: of the response.
    """

    def __init__(
        self,
        message: str,
        status: int = 400,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.message, self.status, self.param, self.code = message, status, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The body of the response, or the event in a stream."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        message = " ".join(printable(self.message).split())
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status, self.headers)


def api_error(error: BaseException) -> ApiError:
    """What a client is told about an exception. Those that are no fault of the client's are logged."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFull):
        return ApiError(str(error), 429, code="queue_full", headers={"Retry-After": "1"})
    if isinstance(error, TimedOut):
        return ApiError(str(error), 504, code="timeout")
    if isinstance(error, Cancelled):
        return ApiError(str(error), 503, code="unavailable", headers={"Retry-After": "5"})
    if isinstance(error, UserError):
        return ApiError(str(error), code="invalid_value")
    _log.error("a request failed", exc_info=error)
    return ApiError("the server failed to answer this request", 500, code="internal_error")


def install(app: FastAPI) -> None:
    """Makes the app report all errors so."""

    async def known(request: Request, error: Exception) -> JSONResponse:
        return api_error(error).response()

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        message = {404: f"there is no {request.url.path}", 405: f"{request.url.path} takes another method"}
        found = message.get(error.status_code, str(error.detail))
        return ApiError(found, error.status_code, headers=error.headers).response()

    for kind in (ApiError, UserError, Exception):
        app.add_exception_handler(kind, known)
    app.add_exception_handler(HTTPException, http)
