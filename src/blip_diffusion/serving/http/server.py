"""The FastAPI application, and the process that serves it."""

import socket
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from blip_diffusion import __version__
from blip_diffusion.errors import InputError
from blip_diffusion.serving.http import health, images, jobs, subjects
from blip_diffusion.serving.http.guards import LOOPBACK, Guard
from blip_diffusion.serving.http.keys import ApiKeys
from blip_diffusion.serving.http.problems import PROBLEM_RESPONSES, add_handlers
from blip_diffusion.serving.job_service import JobService

GRACE = 5
"""Seconds before open connections are closed when the server stops."""


def create_app(service: JobService, *, keys: ApiKeys | None = None, hosts: Collection[str] = LOOPBACK) -> FastAPI:
    """Return the application over a service, which starts and stops with it.

    Args:
        service: The job service.
        keys: The API keys. `None`: requests need no key.
        hosts: Allowed host names. Empty: any.

    Example:
        >>> app = create_app(JobService(ServiceSettings(Path("server"))))
    """
    app = empty_app(service, hosts=hosts, openapi_url="/v1/openapi.json", responses=PROBLEM_RESPONSES)
    app.state.keys = keys
    for part in (health, images, jobs, subjects):
        app.include_router(part.router)
    return app


def empty_app(service: JobService, *, hosts: Collection[str], **options: Any) -> FastAPI:
    """Return an application without routes that starts and stops a service, as `serve` needs it.

    Args:
        service: The job service.
        hosts: Allowed host names. Empty: any.
        **options: Arguments of `FastAPI`.
    """
    app = FastAPI(
        title="blip-diffusion",
        version=__version__,
        lifespan=_lifespan_of(service),
        docs_url=None,  # its page loads scripts from another server
        redoc_url=None,
        **options,
    )
    app.state.service = service
    add_handlers(app)
    app.add_middleware(Guard, hosts=hosts)
    return app


def _lifespan_of(service: JobService) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """Return what starts a service with an application, and stops it with that."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(service.start)  # DBOS refuses to start within an event loop
        try:
            yield
        finally:
            await run_in_threadpool(service.close)

    return lifespan


def check_exposure(host: str, keys: ApiKeys | None) -> None:
    """Raise `InputError` for a server that is reachable by others and needs no key."""
    if keys is None and host not in LOOPBACK:
        raise InputError(
            f"--host {host} makes the server reachable by others: add --keys FILE, made with --new-key NAME."
        )


def check_address(host: str, port: int) -> None:
    """Raise `InputError` if a server can't listen there. Found by the server itself, it would be a line in its log."""
    if not 0 <= port < 2**16:
        raise InputError(f"--port is {port}: use a number from 0 to {2**16 - 1}.")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        socket.create_server(address[:2], family=family).close()
    except OSError as error:
        raise InputError(
            f"--host {host} and --port {port} can't be listened to ({error.strerror}): choose others."
        ) from error


def serve(app: FastAPI, host: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM. Running jobs continue at the next start.

    Raises:
        InputError: If the service can't start. Raised within the server, it would be a traceback in its log.
    """
    app.state.service.start()
    uvicorn.run(app, host=host, port=port, log_level="warning", access_log=False, timeout_graceful_shutdown=GRACE)
