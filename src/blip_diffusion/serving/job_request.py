"""Requests as JSON for the queue, with ids in place of images. Imports no torch."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from blip_diffusion import config
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
