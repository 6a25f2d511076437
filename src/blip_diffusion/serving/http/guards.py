"""Checks of host, origin and size before a request is read."""

from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from blip_diffusion.serving.http.problems import Problem, response

MAX_BODY = 16 * 2**20
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Guard:
    """Middleware: refuses foreign hosts (DNS rebinding), foreign origins (cross-site requests), and large bodies.

    Args:
        app: The application.
        hosts: Allowed host names, without ports. Empty: any host, and pages of any site. Use that only for a public
            page behind a proxy, without users' rights that another site could use.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self._app, self._hosts = app, {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        problem = self._problem(headers)
        if problem is not None:
            await response(problem)(scope, receive, send)
            return
        await _Limited(self._app, receive, send)(scope)

    def _problem(self, headers: Mapping[str, str]) -> Problem | None:
        host = headers.get("host", "")
        if self._hosts and _name(f"//{host}") not in self._hosts:
            return Problem(403, "foreign_host", "This server doesn't accept that Host name: see --allow-host.")
        origin = headers.get("origin")
        if self._hosts and origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return Problem(403, "foreign_origin", "Pages of other sites may not use this server.")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > MAX_BODY:
            return too_large()
        return None


class _Limited:
    """Counts the bytes of a body without a length, or with a wrong one."""

    def __init__(self, app: ASGIApp, receive: Receive, send: Send) -> None:
        self._app, self._receive, self._send = app, receive, send
        self._bytes = 0
        self._started = False

    async def __call__(self, scope: Scope) -> None:
        try:
            await self._app(scope, self._next, self._pass)
        except _TooLarge:
            if not self._started:
                await response(too_large())(scope, self._receive, self._send)

    async def _next(self) -> Message:
        message = await self._receive()
        self._bytes += len(message.get("body", b""))
        if self._bytes > MAX_BODY:
            raise _TooLarge
        return message

    async def _pass(self, message: Message) -> None:
        self._started = True
        await self._send(message)


class _TooLarge(BaseException):
    """Unwinds the application, whose error handlers would return 500."""


def too_large() -> Problem:
    """Return the problem of a body that is too large."""
    return Problem(413, "body_too_large", f"The body is larger than {MAX_BODY // 2**20} MiB: send a smaller image.")


def _name(address: str) -> str:
    try:
        return (urlsplit(address).hostname or "").lower()
    except ValueError:
        return ""
