from dataclasses import replace
from typing import Any

import pytest

from blip_diffusion.generation.request import GenerationRequest
from blip_diffusion.serving.page.follow import follow


def test_view_shows_the_end_that_the_queue_stores_after_the_last_event(
    service: Any, request_of_dog: GenerationRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = service.wait(service.submit(request_of_dog).id)
    running = replace(done, state="running", seconds=0.0)
    answers = iter([running, running, running])
    monkeypatch.setattr(service, "get", lambda _: next(answers, done))
    views = list(follow(service, done.id))
    assert views[-1].text == f"Done: 1 image in {done.seconds:.1f} s."
    assert [view.ended for view in views] == [False] * (len(views) - 1) + [True]
    assert views[-1].images == done.images


def test_unknown_job_has_an_ended_view(service: Any) -> None:
    assert [view.ended for view in follow(service, "0" * 32)] == [True]
