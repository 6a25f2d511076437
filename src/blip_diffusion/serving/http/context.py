"""Dependencies of the routes: the service, and the owner of the request's key."""

from typing import Annotated

from fastapi import Depends, Request

from blip_diffusion.serving.http.keys import ApiKeys
from blip_diffusion.serving.http.problems import Problem
from blip_diffusion.serving.job_service import JobService


def _service(request: Request) -> JobService:
    service: JobService = request.app.state.service
    return service


def _owner(request: Request) -> str:
    """Return the name of the request's key; empty on a server without keys."""
    keys: ApiKeys | None = request.app.state.keys
    if keys is None:
        return ""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    owner = keys.owner_of(key.strip()) if scheme.lower() == "bearer" else None
    if owner is None:
        headers = {"WWW-Authenticate": "Bearer"}
        raise Problem(401, "invalid_api_key", "Send a valid API key: Authorization: Bearer KEY.", headers=headers)
    return owner


Service = Annotated[JobService, Depends(_service)]
Owner = Annotated[str, Depends(_owner)]


def scope_of(request: Request, owner: str) -> str | None:
    """Return the owner of the jobs that a request may read; `None` for all jobs, on a server without keys."""
    return None if request.app.state.keys is None else owner
