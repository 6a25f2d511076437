"""`/v1/subjects`: tuned subject files, each under its SHA-256."""

from typing import Any

from fastapi import APIRouter, Response, UploadFile
from fastapi.responses import FileResponse

from blip_diffusion.serving.http.context import Owner, Service
from blip_diffusion.serving.http.json_bodies import StrictRoute
from blip_diffusion.serving.store import StoredSubject

router = APIRouter(prefix="/v1/subjects", route_class=StrictRoute, tags=["subjects"])
Document = dict[str, Any]


def subject_document(subject: StoredSubject) -> Document:
    """Return a subject as JSON values."""
    header = subject.header
    return {
        "id": subject.id,
        "object": "subject",
        "name": header.name,
        "category": header.category,
        "base": header.base,
    }


@router.get("")
def list_subjects(service: Service, _: Owner) -> Document:
    """Return all subjects, the newest first. They are shared by all keys."""
    return {"object": "list", "data": [subject_document(subject) for subject in service.store.subjects()]}


@router.post("", status_code=201)
def upload(file: UploadFile, response: Response, service: Service, _: Owner) -> Document:
    """Save a subject file, which must be safetensors as written by `blip-diffusion tune`."""
    subject = service.store.add_subject(file.file.read())
    response.headers["Location"] = f"/v1/subjects/{subject.id}"
    return subject_document(subject)


@router.get("/{subject_id}")
def get(subject_id: str, service: Service, _: Owner) -> Document:
    """Return a subject."""
    return subject_document(service.store.subject(subject_id))


@router.get("/{subject_id}/file", response_class=FileResponse)
def download(subject_id: str, service: Service, _: Owner) -> FileResponse:
    """Return the file."""
    path = service.store.subject_path(subject_id)
    return FileResponse(path, media_type="application/octet-stream", filename=f"{subject_id}.safetensors")


@router.get("/{subject_id}/thumbnail", response_class=Response)
def thumbnail(subject_id: str, service: Service, _: Owner) -> Response:
    """Return a small image of a subject, which is decoded and encoded again."""
    return Response(service.subject_reference(subject_id), media_type="image/png")


@router.delete("/{subject_id}", status_code=204)
def delete(subject_id: str, service: Service, _: Owner) -> None:
    """Remove a subject. Waiting jobs that use it will fail."""
    service.store.remove_subject(subject_id)
