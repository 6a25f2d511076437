"""Requests as JSON for the queue, with ids in place of images. Imports no torch."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from blip_diffusion import config
from blip_diffusion.errors import InputError
from blip_diffusion.generation.request import GenerationRequest
from blip_diffusion.serving.store import Store


def to_table(request: GenerationRequest, store: Store) -> dict[str, Any]:
    """Return a request as JSON values; its reference and its control maps are saved in the store."""
    table = dataclasses.asdict(request)
    table["reference"] = store.add_reference(request.reference)
    table["controls"] = [{**one, "image": store.add_reference(one["image"])} for one in table["controls"]]
    table["subjects"] = [{**one, "thumbnail": ""} for one in table["subjects"]]
    return table


def references_of(table: Mapping[str, Any]) -> set[str]:
    """Return the ids of all references that a stored request needs."""
    return {table["reference"], *(one["image"] for one in table["controls"])}


def from_table(table: Mapping[str, Any], store: Store) -> GenerationRequest:
    """Return a stored request. Raises `UnknownId` if its reference has been removed."""
    restored = {
        "reference": store.read_reference(table["reference"]),
        "controls": [{**one, "image": store.read_reference(one["image"])} for one in table["controls"]],
        "subjects": [{**one, "thumbnail": b""} for one in table["subjects"]],
    }
    return config.build(GenerationRequest, {**table, **restored})


def adopt(request: GenerationRequest, store: Store, models: Mapping[str, str]) -> GenerationRequest:
    """Return a request from a PNG file with a server's ids; see `JobService.adopt`."""
    if request.edit is not None:
        raise InputError("The image is an edit of a photo that isn't here: generate one, or edit on the command line.")
    if any(control.controlnet for control in request.controls):
        raise InputError("The image was made with another ControlNet, which this server doesn't load.")
    known = {subject.id for subject in store.subjects()}
    if not {subject.sha256 for subject in request.subjects} <= known:
        raise InputError("The image was made with a tuned subject that isn't here: upload the subject file first.")
    model = next((name for name, path in models.items() if request.model in (name, path)), None)
    if model is None:
        raise InputError("The image was made with a model that this server doesn't have.")
    subjects = tuple(dataclasses.replace(subject, path=subject.sha256) for subject in request.subjects)
    return dataclasses.replace(request, model=model, subjects=subjects)
