"""`/v1/images`: the images routes of OpenAI's API. Each is a job that the connection waits for."""

import base64
import io
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Literal

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from sse_starlette import EventSourceResponse
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile

from blip_diffusion.generation.request import GenerationRequest
from blip_diffusion.images import open_lazily
from blip_diffusion.serving.http.context import Owner, Service, scope_of
from blip_diffusion.serving.http.inputs import build_edit, build_request, references_of
from blip_diffusion.serving.http.json_bodies import StrictRoute
from blip_diffusion.serving.http.problems import Problem, document, invalid
from blip_diffusion.serving.http.schemas import EditBody, GenerationBody, ImageBody
from blip_diffusion.serving.http.watch import ended, follow
from blip_diffusion.serving.job_service import JobService
from blip_diffusion.serving.jobs import Job
from blip_diffusion.strict_json import parse_json

IMAGES = ("image", "image[]")
"""Fields of a form that hold images."""
router = APIRouter(prefix="/v1/images", route_class=StrictRoute, tags=["images"])
Prefix = Literal["image_generation", "image_edit"]
MAX_KEY = 255
MAX_FILES = 6
"""Files of a form: a photo and its references, or references, and a mask."""
STREAMED: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}
"""With `stream`, the answer is server-sent events."""
STATUS = {"cancelled": 409, "internal_error": 500, "worker_died": 500, "server_died": 500, "out_of_memory": 507}
"""HTTP status of jobs that ended without images, by cause; 422 for others."""


@router.post("/generations", response_model=None, responses=STREAMED)
async def generations(
    body: GenerationBody,
    service: Service,
    owner: Owner,
    idempotency_key: str = Header("", max_length=MAX_KEY),
) -> Response:
    """Generate images of the subject of a reference (a data URL), or of a stored subject."""
    job = await run_in_threadpool(_generate, service, body, owner, idempotency_key)
    return await _respond(service, job, body, "image_generation")


@router.post("/edits", response_model=None, responses=STREAMED)
async def edits(
    request: Request, service: Service, owner: Owner, idempotency_key: str = Header("", max_length=MAX_KEY)
) -> Response:
    """Generate images of the subject of uploaded references, or edit a photo, as multipart form data.

    With a `mask` (a PNG, transparent or white where the photo may change) or a `source_category`, the first image is
    the photo, and further ones are references. A photo without `source_category` is painted into the mask.
    """
    async with request.form(max_files=MAX_FILES, max_fields=40) as form:
        fields = _text_fields(form)
        files = [value for name in IMAGES for value in form.getlist(name)]
        if not 1 <= len(files) <= MAX_FILES - 1 or not all(isinstance(file, UploadFile) for file in files):
            raise Problem(422, "invalid_input", f"Send 1 to {MAX_FILES - 1} images.", param="image")
        uploads = [await file.read() for file in files if isinstance(file, UploadFile)]
        mask = await given.read() if isinstance(given := form.get("mask"), UploadFile) else None
    body = _form_body(fields)
    job = await run_in_threadpool(_edit, service, body, uploads, mask, owner, idempotency_key)
    return await _respond(service, job, body, "image_edit")


@router.get("/{image_id}.png", response_class=Response)
def image(image_id: str, request: Request, service: Service, owner: Owner) -> Response:
    """Return a generated image; its settings are inside."""
    data = service.store.read_image(image_id)
    service.get(image_id.partition("-")[0], owner=scope_of(request, owner))
    headers = {"Cache-Control": "private, max-age=31536000, immutable", "X-Content-Type-Options": "nosniff"}
    return Response(data, media_type="image/png", headers=headers)


def _text_fields(form: FormData) -> dict[str, str]:
    """Return the texts of a form. Raises `Problem` for a field that is given twice, and for a file without effect."""
    fields: dict[str, str] = {}
    known = {*IMAGES, "mask"}
    for name, value in form.multi_items():
        if isinstance(value, UploadFile) and name not in known:
            raise Problem(422, "invalid_input", f"{name[:100]}: a file has no effect here.", param=name[:100])
        if name in fields or (name == "mask" and len(form.getlist(name)) > 1):
            raise Problem(422, "invalid_input", f"{name[:100]} is given twice: give it once.", param=name[:100])
        if isinstance(value, str):
            fields[name] = value
    return fields


def _form_body(fields: Mapping[str, str]) -> EditBody:
    """Return the body for form fields; lists and objects are JSON."""
    values = {name: _json(value) if value[:1] in "[{" else value for name, value in fields.items() if value != ""}
    try:
        return EditBody.model_validate(values)
    except ValidationError as error:
        raise invalid(error.errors()) from error


def _json(text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError:
        return text


def _generate(service: JobService, body: GenerationBody, owner: str, key: str) -> Job:
    return _submit(service, build_request(service, body, **references_of(body)), body, owner, key)


def _edit(
    service: JobService, body: EditBody, uploads: Sequence[bytes], mask: bytes | None, owner: str, key: str
) -> Job:
    """Submit an edit of the first upload, or images of the subject of all uploads."""
    edit = None
    if mask is not None or body.mask or body.source_category:
        photo, *uploads = uploads
        edit = build_edit(service, body, "edit" if body.source_category else "inpaint", photo, mask)
    return _submit(service, build_request(service, body, uploads, edit=edit), body, owner, key)


def _submit(service: JobService, request: GenerationRequest, body: ImageBody, owner: str, key: str) -> Job:
    previews = (body.partial_images or 0) if body.stream and body.n == 1 else 0
    return service.submit(request, owner=owner, key=key, previews=previews)


async def _respond(service: JobService, job: Job, body: ImageBody, prefix: Prefix) -> Response:
    if body.stream:
        return EventSourceResponse(_stream(service, job, body, prefix), ping=15)
    job = await ended(service, job.id)
    _check(job)
    data = [await run_in_threadpool(_image, service, image_id, body) for image_id in job.images]
    content = {
        "created": int(job.created),
        "data": data,
        "output_format": body.output_format,
        "usage": _usage(),
        "job": job.id,
    }
    return JSONResponse(content)


async def _stream(service: JobService, job: Job, body: ImageBody, prefix: Prefix) -> AsyncIterator[dict[str, str]]:
    """Yield OpenAI's events: partial images, then each image."""
    common = {"created_at": int(time.time()), "size": body.size, "quality": body.quality, "background": "opaque"}
    partial = 0
    async for event in follow(service, job.id):
        if event.kind == "preview":
            preview = base64.b64encode(event.preview).decode()
            values = {"b64_json": preview, "partial_image_index": partial, "output_format": "jpeg"}
            yield _event(f"{prefix}.partial_image", common | values)
            partial += 1
    try:
        job = await ended(service, job.id)
        _check(job)
        for image_id in job.images:
            values = await run_in_threadpool(_image, service, image_id, body)
            yield _event(
                f"{prefix}.completed", common | values | {"output_format": body.output_format, "usage": _usage()}
            )
    except Problem as problem:
        yield _event("error", document(problem))


def _event(kind: str, values: Mapping[str, Any]) -> dict[str, str]:
    return {"event": kind, "data": json.dumps({"type": kind, **values})}


def _check(job: Job) -> None:
    """Raise `Problem` for a job that ended without images."""
    if job.state == "cancelled":
        raise Problem(409, "cancelled", "The job was cancelled.")
    if job.state == "failed":
        raise Problem(STATUS.get(job.cause, 422), job.cause, job.problem)


def _image(service: JobService, image_id: str, body: ImageBody) -> dict[str, Any]:
    """Return one image in the requested format. JPEG and WebP files hold no settings."""
    if body.response_format == "url":
        return {"url": f"/v1/images/{image_id}.png"}
    data = service.store.read_image(image_id)
    if body.output_format != "png":
        buffer = io.BytesIO()
        with open_lazily(io.BytesIO(data)) as opened:
            opened.save(buffer, body.output_format.upper(), quality=body.output_compression)
        data = buffer.getvalue()
    return {"b64_json": base64.b64encode(data).decode()}


def _usage() -> dict[str, Any]:
    """Return OpenAI's count of tokens, which is always 0 here."""
    details = {"text_tokens": 0, "image_tokens": 0}
    return {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0, "input_tokens_details": details}
