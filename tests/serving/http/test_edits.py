"""Edits over HTTP: their pixels are the command line's, and photos and masks are checked before a job exists."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

pytest.importorskip("fastapi")
pytest.importorskip("dbos")
from starlette.testclient import TestClient

from blip_diffusion.generation.edit_request import EditInput, image_ref
from blip_diffusion.generation.png_metadata import decode
from blip_diffusion.generation.request import GenerationRequest, read_reference
from blip_diffusion.generation.run import run
from blip_diffusion.images import png_bytes
from blip_diffusion.serving.http.server import create_app

SIZE = (48, 32)


@pytest.fixture(scope="module")
def client(service: Any) -> TestClient:
    return TestClient(create_app(service), base_url="http://localhost")


@pytest.fixture(scope="module")
def photo() -> bytes:
    image = Image.effect_noise(SIZE, 80).convert("RGB")
    ImageDraw.Draw(image).ellipse((14, 6, 30, 26), fill="brown")
    return png_bytes(image)


@pytest.fixture(scope="module")
def mask() -> bytes:
    image = Image.new("L", SIZE)
    ImageDraw.Draw(image).rectangle((14, 6, 30, 26), fill=255)
    return png_bytes(image)


@pytest.fixture(scope="module")
def body(photo: bytes, mask: bytes, dog_png: bytes) -> dict[str, Any]:
    fields = {"prompt": "on the beach", "category": "dog", "steps": 3, "seed": 4, "reference": url(dog_png)}
    return fields | {"photo": url(photo), "mask": url(mask), "feather": 1}


def url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def pixels(data: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(data)))


def result_of(client: TestClient, service: Any, response: Any) -> bytes:
    assert response.status_code == 202, response.text
    job = service.wait(response.json()["id"])
    assert job.state == "done", job.problem
    return client.get(f"/v1/images/{job.images[0]}.png").content


@pytest.mark.parametrize(
    ("kind", "extra"),
    [("edit", {"source_category": "cat", "inversion": "ddpm"}), ("inpaint", {"resamplings": 1})],
)
def test_an_edit_has_the_pixels_of_the_command_line(
    client: TestClient, service: Any, body: dict[str, Any], tmp_path: Path, tiny_folder: Path, kind: str, extra: Any
) -> None:
    png = result_of(client, service, client.post("/v1/jobs", json=body | extra | {"kind": kind}))
    for name in ("photo", "mask", "reference"):
        (tmp_path / name).write_bytes(base64.b64decode(body[name].partition(",")[2]))
    edit = EditInput(image_ref(tmp_path / "photo"), kind, mask_file=image_ref(tmp_path / "mask"), feather=1, **extra)
    reference = read_reference(tmp_path / "reference")
    request = GenerationRequest(
        ("on the beach",), reference, "dog", "dog", str(tiny_folder), steps=3, seed=4, edit=edit
    )
    ours = pixels(run(request, tmp_path / "out", device="cpu")[0].read_bytes()).astype(int)
    assert abs(pixels(png).astype(int) - ours).max() <= 1  # the worker may have another number of threads
    stored, _ = decode(io.BytesIO(png))
    assert stored.edit is not None
    assert (stored.edit.photo.sha256, stored.edit.photo.path) == (edit.photo.sha256, edit.photo.sha256)
    again = client.post("/v1/jobs/reproduce", files={"file": ("x.png", png)})
    assert result_of(client, service, again) == png


def test_edits_report_each_step_and_end_when_cancelled(client: TestClient, service: Any, body: dict[str, Any]) -> None:
    fields = body | {"kind": "edit", "source_category": "cat", "inversion": "none", "n": 2, "previews": 1}
    job = service.wait(client.post("/v1/jobs", json=fields).json()["id"])
    kinds = [event.kind for event in service.events_after(job.id)]
    assert (kinds.count("progress"), kinds.count("preview"), kinds.count("image")) == (4, 1, 2), (
        job.problem
    )  # the log keeps the newest
    long = client.post("/v1/jobs", json=fields | {"steps": 100, "n": 10}).json()["id"]
    while not any(event.kind == "progress" for event in service.events_after(long)):
        pass
    assert client.delete(f"/v1/jobs/{long}").json()["state"] == "cancelled"


def test_openai_mask_is_transparent_where_the_photo_changes(
    client: TestClient, service: Any, body: dict[str, Any], photo: bytes, mask: bytes, dog_png: bytes
) -> None:
    transparent = Image.open(io.BytesIO(photo)).convert("RGBA")
    transparent.putalpha(Image.open(io.BytesIO(mask)).point(lambda value: 255 - value))
    fields = {"prompt": "on the beach", "category": "dog", "steps": "3", "seed": "4", "feather": "1"}
    fields |= {"response_format": "url", "resamplings": "1"}
    files = [("image[]", photo), ("image[]", dog_png), ("mask", png_bytes(transparent))]
    response = client.post("/v1/images/edits", data=fields, files=[(name, ("x.png", data)) for name, data in files])
    assert response.status_code == 200, response.text
    painted = client.get(response.json()["data"][0]["url"]).content
    job = client.post("/v1/jobs", json=body | {"kind": "inpaint", "resamplings": 1})
    assert job.json()["kind"] == "inpaint"
    assert (pixels(painted) == pixels(result_of(client, service, job))).all()


def test_two_subjects_stand_in_boxes(client: TestClient, service: Any, dog_png: bytes, owl_png: bytes) -> None:
    other = {"reference": url(owl_png), "category": "owl", "box": [0.5, 0, 1, 1]}
    body = {"prompt": "on the beach", "reference": url(dog_png), "category": "dog", "box": [0, 0, 0.5, 1], "steps": 2}
    png = result_of(client, service, client.post("/v1/jobs", json=body | {"more_subjects": [other]}))
    stored, _ = decode(io.BytesIO(png))
    assert [one.category for one in stored.more_subjects] == ["owl"]
    refused = client.post("/v1/images/generations", json=body | {"more_subjects": [other | {"box": None}]})
    assert refused.status_code == 422


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"photo": None}, "photo"),
        ({"photo": "file:///etc/passwd"}, "data URL"),
        ({"photo": "data:image/png;base64,R0lGODlh"}, "not a PNG"),
        ({"mask": "everything"}, "auto, subject, none"),
        ({"mask": url(png_bytes(Image.new("L", (32, 32), "white")))}, "make them equal"),
        ({"mask": url(png_bytes(Image.new("L", SIZE)))}, "mask is empty"),
        ({"source_category": ""}, "source_category"),
        ({"strength": 0}, "strength"),
        ({"keep_shape": True}, "keep_attention"),
        ({"kind": "inpaint", "mask": "auto"}, "needs a mask"),
        ({"kind": "generate"}, "no effect"),
        ({"subject": "0" * 64}, "stored subject"),
    ],
)
def test_bad_edits_are_refused(client: TestClient, body: dict[str, Any], change: dict[str, Any], words: str) -> None:
    before = client.get("/v1/jobs").json()["data"]
    response = client.post("/v1/jobs", json=body | {"kind": "edit", "source_category": "cat"} | change)
    assert response.status_code == 422 and words in response.json()["detail"], response.text
    assert client.get("/v1/jobs").json()["data"] == before


def test_large_photo_is_refused_before_decoding(client: TestClient, huge_png: Any, body: dict[str, Any]) -> None:
    large = {"kind": "edit", "source_category": "cat", "photo": url(huge_png(20_000).read_bytes())}
    assert client.post("/v1/jobs", json=body | large).status_code == 422
