"""Errors as RFC 9457 problem documents, with the `error` member of OpenAI's API."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from blip_diffusion.errors import BlipDiffusionError
from blip_diffusion.serving.errors import QueueFull, UnknownId

MEDIA_TYPE = "application/problem+json"
PROBLEM_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"description": "A problem document.", "content": {MEDIA_TYPE: {"schema": {"type": "object"}}}}
    for status in ("4XX", "5XX")
}
"""Error responses of every route in the OpenAPI description."""
RETRY_AFTER = {"Retry-After": "5"}
FIELDS = {
    "--num-images": "n",
    "--seed": "seed",
    "--steps": "steps",
    "--guidance-scale": "guidance_scale",
    "--control-guidance-end": "end",
    "--from": "source_category",
    "--mask FILE": "a mask",
    "--strength": "strength",
    "--keep-attention": "keep_attention",
    "--resamplings": "resamplings",
    "--feather": "feather",
}
"""Fields of the HTTP interface, by the command line's flags in error messages."""


class Problem(Exception):  # noqa: N818  # RFC 9457's word
    """An error response.

    Args:
        status: HTTP status.
        code: Stable identifier, for programs.
        detail: One sentence on how to correct it.
        param: The invalid field, if there is one.
        headers: Further headers of the response.
    """

    def __init__(
        self, status: int, code: str, detail: str, *, param: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail, self.param, self.headers = status, code, detail, param, headers


def document(problem: Problem) -> dict[str, Any]:
    """Return a problem as JSON values."""
    kind = "invalid_request_error" if problem.status < 500 else "server_error"
    error = {"message": problem.detail, "type": kind, "param": problem.param, "code": problem.code}
    title = HTTPStatus(problem.status).phrase
    return {
        "type": "about:blank",
        "title": title,
        "status": problem.status,
        "detail": problem.detail,
        "code": problem.code,
        "error": error,
    }


def response(problem: Problem) -> JSONResponse:
    """Return a problem as a response."""
    headers = dict(problem.headers or {})
    return JSONResponse(document(problem), problem.status, headers=headers, media_type=MEDIA_TYPE)


def problem_of(error: BlipDiffusionError) -> Problem:
    """Return the problem for an error of the package."""
    detail = str(error)
    for flag, field in FIELDS.items():
        detail = detail.replace(flag, field)
    if isinstance(error, UnknownId):
        return Problem(404, error.code, detail)
    if isinstance(error, QueueFull):
        return Problem(429, error.code, detail, headers=RETRY_AFTER)
    return Problem(422, error.code, detail)


def add_handlers(app: FastAPI) -> None:
    """Add handlers that return a problem document for every error."""

    @app.exception_handler(Problem)
    async def of_problem(_: Request, error: Problem) -> JSONResponse:
        return response(error)

    @app.exception_handler(BlipDiffusionError)
    async def of_package(_: Request, error: BlipDiffusionError) -> JSONResponse:
        return response(problem_of(error))

    @app.exception_handler(RequestValidationError)
    async def of_validation(_: Request, error: RequestValidationError) -> JSONResponse:
        return response(invalid(error.errors()))

    @app.exception_handler(HTTPException)
    async def of_http(_: Request, error: HTTPException) -> JSONResponse:
        code = HTTPStatus(error.status_code).name.lower()
        return response(Problem(error.status_code, code, str(error.detail), headers=error.headers))

    @app.exception_handler(Exception)
    async def of_bug(_: Request, _error: Exception) -> JSONResponse:
        return response(Problem(500, "internal_error", "The server failed on this request; see its log."))


def invalid(errors: Any) -> Problem:
    """Return pydantic's first error as a problem. The value itself is not repeated."""
    first = errors[0]
    field = ".".join(str(part) for part in first["loc"] if part != "body") or None
    return Problem(422, "invalid_input", f"{field or 'The body'}: {first['msg']}.", param=field)
