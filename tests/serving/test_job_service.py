import io
import os
import re
import signal
import time
from dataclasses import replace
from time import sleep
from typing import Any

import numpy as np
import pytest
from PIL import Image

from blip_diffusion.errors import CheckpointError, InputError
from blip_diffusion.generation.png_metadata import decode
from blip_diffusion.generation.request import GenerationRequest

pytest.importorskip("dbos")
from blip_diffusion.serving.errors import KeyReused, UnknownId

Service = Any


def test_job_runs_once_per_idempotency_key(service: Service, request_of_dog: GenerationRequest) -> None:
    first = service.submit(request_of_dog, key="one")
    again = service.submit(request_of_dog, key="one")
    job = service.wait(first.id)
    assert (again.id, job.state, len(job.images)) == (first.id, "done", 1), job.problem
    with pytest.raises(KeyReused):
        service.submit(replace(request_of_dog, seed=2), key="one")


def test_png_contains_the_request_but_no_path(service: Service, request_of_dog: GenerationRequest) -> None:
    job = service.wait(service.submit(request_of_dog).id)
    png = service.store.read_image(job.images[0])
    assert str(service.settings.folder).encode() not in png
    request, _ = decode(io.BytesIO(png))
    assert (request.model, request.prompts, request.seed) == ("tiny", ("on the beach",), 1)
    same = service.wait(service.submit(service.adopt(request), auto_dtype=False).id)
    assert service.store.read_image(same.images[0]) == png


def test_events_describe_the_job(service: Service, request_of_dog: GenerationRequest) -> None:
    job = service.wait(service.submit(replace(request_of_dog, seed=5), previews=1).id)
    events = service.events_after(job.id)
    kinds = [event.kind for event in events]
    assert (kinds[:2], kinds[-2:]) == (["queued", "started"], ["image", "done"])
    assert kinds.count("progress") == 2
    assert next(event for event in events if event.kind == "preview").preview[:2] == b"\xff\xd8"
    assert service.events_after(job.id, events[-2].number) == [events[-1]]


def test_running_job_is_cancelled(service: Service, request_of_dog: GenerationRequest) -> None:
    job = service.submit(replace(request_of_dog, steps=1000))
    while not any(event.kind == "progress" for event in service.events_after(job.id)):
        sleep(0.02)
    assert service.cancel(job.id).state == "cancelled"
    assert service.wait(service.submit(request_of_dog).id, timeout=20).state == "done"


def test_settings_screen_the_images_of_all_requests(
    service: Service, request_of_dog: GenerationRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watermark is refused by the worker: it needs larger images, or its package is missing."""
    monkeypatch.setattr(service, "settings", replace(service.settings, watermark=True, safety_checker=True))
    job = service.wait(service.submit(replace(request_of_dog, seed=77), previews=2).id)
    assert job.request.safety_checker and job.request.watermark
    assert job.state == "failed" and re.search("needs (images of at least 256|the package)", job.problem)
    assert all(event.kind != "preview" for event in service.events_after(job.id))


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a" * 32, "a" * 32 + "-0", "a" * 64, ""])
def test_ids_cannot_name_other_files(service: Service, name: str) -> None:
    for read in (service.get, service.store.read_image, service.store.subject, service.store.read_reference):
        with pytest.raises(UnknownId):
            read(name)


def test_invalid_requests_are_refused(service: Service, request_of_dog: GenerationRequest) -> None:
    with pytest.raises(InputError, match="no model"):
        service.submit(replace(request_of_dog, model="/etc"))
    with pytest.raises(CheckpointError):
        service.store.add_subject(b"\x80\x04\x95a pickle")
    assert list(service.store.subjects()) == []


def test_preview_of_the_reference_is_square(service: Service, dog_png: bytes) -> None:
    assert service.preview_reference(dog_png, timeout=60.0)[:4] == b"\x89PNG"


@pytest.mark.faces
def test_killed_worker_loses_no_job(service: Service, request_of_dog: GenerationRequest) -> None:
    before = service.wait(service.submit(replace(request_of_dog, steps=300)).id)
    job = service.submit(replace(request_of_dog, steps=300))
    while not any(event.kind == "progress" for event in service.events_after(job.id)):
        sleep(0.02)
    os.kill(service.pool.workers[0].process_id, signal.SIGKILL)
    after = service.wait(job.id)
    assert service.store.read_image(after.images[0]) == service.store.read_image(before.images[0])


def test_equal_requests_are_generated_together(
    service: Service, request_of_dog: GenerationRequest, owl_png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And each image is what it is alone, whatever is beside it."""
    dog = replace(request_of_dog, steps=3)
    owl = replace(dog, reference=owl_png, category="owl", target_category="owl", seed=9, num_images=2)
    alone = [service.wait(service.submit(one).id) for one in (dog, owl)]
    tasks: list[Any] = []
    do = service.pool.do
    monkeypatch.setattr(service.pool, "do", lambda task, *rest: tasks.append(task) or do(task, *rest))
    busy = service.submit(replace(dog, steps=200))
    while not tasks:  # until it runs, so that the others wait for it together
        time.sleep(0.01)
    joint = [service.submit(one, previews=0) for one in (dog, owl, dog, replace(dog, steps=4))]
    joint = [service.wait(job.id) for job in joint]
    assert service.wait(busy.id).state == "done"
    assert [len(task.batches) for task in tasks] == [1, 3, 1]
    for one, other in zip([*alone, alone[0]], joint, strict=False):
        assert len(one.images) == len(other.images)
        for pair in zip(one.images, other.images, strict=True):
            before, now = (np.asarray(open_png(service.store.read_image(image_id))).astype(int) for image_id in pair)
            assert abs(before - now).max() <= 1  # the last bit may differ


def test_a_wrong_request_spoils_no_other_of_its_batch(service: Service, request_of_dog: GenerationRequest) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), "white").save(buffer, "PNG")  # a reference of one colour, which is refused
    busy = service.submit(replace(request_of_dog, steps=200))
    blank, dog = service.submit(replace(request_of_dog, reference=buffer.getvalue())), service.submit(request_of_dog)
    assert service.wait(blank.id).state == "failed"
    assert service.wait(dog.id).state == "done"
    assert service.wait(busy.id).state == "done"


def open_png(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))
