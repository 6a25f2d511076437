"""Requests as JSON for the queue, with ids in place of images. Imports no torch."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from blip_diffusion import config
from blip_diffusion.errors import InputError
from blip_diffusion.generation.edit_request import EditInput, ImageRef
from blip_diffusion.generation.jobs import images_of
from blip_diffusion.generation.request import GenerationRequest
from blip_diffusion.serving.messages import Batch
from blip_diffusion.serving.store import Store


def to_table(request: GenerationRequest, store: Store) -> dict[str, Any]:
    """Return a request as JSON values; its references, masks and control maps are saved in the store."""
    return _with_images(dataclasses.asdict(request), lambda png: store.add_reference(png) if png else "", thumbnail="")


def references_of(table: Mapping[str, Any]) -> set[str]:
    """Return the ids of all files that a stored request needs."""
    found: set[str] = set()
    _with_images(table, found.add, thumbnail="")
    edit = table.get("edit") or {}
    found.update(edit[name]["sha256"] for name in ("photo", "mask_file") if edit.get(name))
    return found - {""}


def from_table(table: Mapping[str, Any], store: Store) -> GenerationRequest:
    """Return a stored request. Raises `UnknownId` if one of its images has been removed."""
    restored = _with_images(table, lambda name: store.read_reference(name) if name else b"", thumbnail=b"")
    return config.build(GenerationRequest, restored)


def _with_images(table: Mapping[str, Any], convert: Callable[[Any], Any], *, thumbnail: Any) -> dict[str, Any]:
    """Return a request's table with each of its images converted."""
    subjects = [
        {**one, "references": [convert(image) for image in one["references"]], "mask": convert(one["mask"])}
        for one in table["more_subjects"]
    ]
    return {
        **table,
        "reference": convert(table["reference"]),
        "more_references": [convert(image) for image in table["more_references"]],
        "region_mask": convert(table["region_mask"]),
        "controls": [{**one, "image": convert(one["image"])} for one in table["controls"]],
        "more_subjects": subjects,
        "subjects": [{**one, "thumbnail": thumbnail} for one in table["subjects"]],
    }


def whole_job(job: str, table: Mapping[str, Any], store: Store, models: Mapping[str, str]) -> Batch:
    """Return all images of a job as one batch, with the files of its ids. Raises `UnknownId`."""
    request = from_table(table["request"], store)
    return Batch(
        job=job,
        request=request,
        model=models[request.model],
        subject_files=tuple(str(store.subject_path(subject.path)) for subject in request.subjects),
        images=tuple(images_of(request)),
        edit=None if request.edit is None else _with_files(request.edit, store),
        auto_dtype=table["auto_dtype"],
        previews=table["previews"],
    )


def check_files(request: GenerationRequest, store: Store) -> None:
    """Raise `UnknownId` if a subject, or the photo or the mask of an edit, is not in the store."""
    for subject in request.subjects:
        store.subject_path(subject.path)
    if request.edit is not None:
        _with_files(request.edit, store)


def _with_files(edit: EditInput, store: Store) -> EditInput:
    """Return an edit with the paths of its photo and its mask in place of their ids."""
    return _edit_of(edit, lambda one: ImageRef(str(store.photo_path(one.path)), one.sha256))


def _edit_of(edit: EditInput, convert: Callable[[ImageRef], ImageRef]) -> EditInput:
    mask = None if edit.mask_file is None else convert(edit.mask_file)
    return dataclasses.replace(edit, photo=convert(edit.photo), mask_file=mask)


def adopt(request: GenerationRequest, store: Store, models: Mapping[str, str]) -> GenerationRequest:
    """Return a request from a PNG file with a server's ids; see `JobService.adopt`."""
    if any(control.controlnet for control in request.controls):
        raise InputError("The image was made with another ControlNet, which this server doesn't load.")
    if request.loras or request.embeddings:
        raise InputError("The image was made with LoRAs or embeddings, which this server doesn't load.")
    if request.upscaler:
        raise InputError("The image was enlarged by another model, which this server doesn't load.")
    if request.blend_row:
        raise InputError("The image is a grid of several mixtures: send the file of one of them.")
    known = {subject.id for subject in store.subjects()}
    if not {subject.sha256 for subject in request.subjects} <= known:
        raise InputError("The image was made with a tuned subject that isn't here: upload the subject file first.")
    model = next((name for name, path in models.items() if request.model in (name, path)), None)
    if model is None:
        raise InputError("The image was made with a model that this server doesn't have.")
    subjects = tuple(dataclasses.replace(subject, path=subject.sha256) for subject in request.subjects)
    edit = None if request.edit is None else _edit_of(request.edit, lambda one: _adopted(one, store))
    engine = "torch" if request.engine == "compiled" else request.engine  # all jobs would wait for minutes
    return dataclasses.replace(request, model=model, subjects=subjects, edit=edit, engine=engine)


def _adopted(image: ImageRef, store: Store) -> ImageRef:
    if not store.has_photo(image.sha256):
        raise InputError("The image is an edit of a photo or with a mask that isn't here: send the edit anew.")
    return ImageRef(image.sha256, image.sha256)
