"""Routes whose JSON bodies are checked as files are: an object with a key twice is refused."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from blip_diffusion.errors import reason
from blip_diffusion.serving.http.problems import Problem
from blip_diffusion.strict_json import parse_json


class StrictRoute(APIRoute):
    """A route that refuses JSON bodies with repeated keys, of which FastAPI keeps the last. A body may be missing."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler of a request."""
        handle = super().get_route_handler()

        async def checked(request: Request) -> Response:
            if "json" in request.headers.get("content-type", "") and (body := await request.body()):
                check_json(body)
            return await handle(request)

        return checked


def check_json(body: bytes) -> None:
    """Raise `Problem` unless a body is JSON without repeated keys."""
    try:
        parse_json(body)
    except ValueError as error:
        raise Problem(422, "invalid_input", f"The body is not valid JSON: {reason(error)}.") from error
