"""`/v1/jobs`: submit, watch, cancel and repeat jobs."""

import base64
import io
import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Header, Query, Request, Response, UploadFile
from sse_starlette import EventSourceResponse
from starlette.concurrency import run_in_threadpool

from blip_diffusion.generation.png_metadata import decode
from blip_diffusion.serving.http.context import Owner, Service, scope_of
from blip_diffusion.serving.http.inputs import build_request, check_reproduced, edit_of, references_of
from blip_diffusion.serving.http.json_bodies import StrictRoute
from blip_diffusion.serving.http.problems import Problem
from blip_diffusion.serving.http.schemas import JobBody, job_document
from blip_diffusion.serving.http.watch import follow
from blip_diffusion.serving.job_service import JobService

router = APIRouter(prefix="/v1/jobs", route_class=StrictRoute, tags=["jobs"])
PREVIEWS = 3
Document = dict[str, Any]


@router.post("", status_code=202)
def submit(
    body: JobBody, response: Response, service: Service, owner: Owner, idempotency_key: str = Header("", max_length=255)
) -> Document:
    """Queue a request and return at once. With an idempotency key, the same request gives the same job.

    The kinds `edit` and `inpaint` need a `photo`; `edit` also a `source_category`, and `inpaint` a `mask`.
    """
    request = build_request(service, body, **references_of(body), edit=edit_of(service, body))
    job = service.submit(request, owner=owner, key=idempotency_key, previews=body.previews)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return job_document(job, service.position(job.id))


@router.post("/reproduce", status_code=202)
def reproduce(file: UploadFile, response: Response, service: Service, owner: Owner) -> Document:
    """Queue the request in a PNG file of blip-diffusion. Nothing that the file names is opened or fetched."""
    request, _ = decode(io.BytesIO(file.file.read()))
    check_reproduced(request)
    job = service.submit(service.adopt(request), owner=owner, previews=PREVIEWS, auto_dtype=False)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return job_document(job, service.position(job.id))


@router.get("")
def list_jobs(request: Request, service: Service, owner: Owner, limit: int = Query(50, ge=1, le=200)) -> Document:
    """Return the newest jobs of this key."""
    jobs = service.list_jobs(limit, owner=scope_of(request, owner))
    return {"object": "list", "data": [job_document(job, service.position(job.id)) for job in jobs]}


@router.get("/{job_id}")
def get(job_id: str, request: Request, service: Service, owner: Owner) -> Document:
    """Return a job."""
    return job_document(service.get(job_id, owner=scope_of(request, owner)), service.position(job_id))


@router.delete("/{job_id}")
def cancel(job_id: str, request: Request, service: Service, owner: Owner) -> Document:
    """Cancel a job. A job that has ended is unchanged."""
    return job_document(service.cancel(job_id, owner=scope_of(request, owner)))


@router.post("/{job_id}/again", status_code=202)
def again(job_id: str, request: Request, response: Response, service: Service, owner: Owner) -> Document:
    """Queue a job's request once more, as a new job."""
    old = service.get(job_id, owner=scope_of(request, owner))
    if old.request is None:
        raise Problem(410, "gone", "The reference of this job has been removed: send the request again.")
    job = service.submit(old.request, owner=owner, previews=PREVIEWS)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return job_document(job, service.position(job.id))


@router.get("/{job_id}/events", response_class=EventSourceResponse)
async def events(
    job_id: str, request: Request, service: Service, owner: Owner, last_event_id: str = Header("", max_length=100)
) -> EventSourceResponse:
    """Stream a job's events. `Last-Event-ID` continues after that event."""
    await run_in_threadpool(service.get, job_id, owner=scope_of(request, owner))
    return EventSourceResponse(_stream(service, job_id, _number(service, last_event_id)), ping=15)


def _number(service: JobService, last_event_id: str) -> int:
    """Return the number in an event's id; 0 for one of another process, whose events are gone."""
    epoch, _, number = last_event_id.partition("-")
    return int(number) if epoch == service.log.epoch and number.isdecimal() and len(number) < 10 else 0


async def _stream(service: JobService, job_id: str, number: int) -> AsyncIterator[dict[str, str]]:
    async for event in follow(service, job_id, number):
        data = dict(event.data)
        if event.preview:
            data["jpeg"] = base64.b64encode(event.preview).decode()
        if event.kind == "image":
            data["url"] = f"/v1/images/{data['id']}.png"
        yield {"id": f"{service.log.epoch}-{event.number}", "event": event.kind, "data": json.dumps(data)}
