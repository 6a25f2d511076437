import json
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
from PIL import Image

from blip_diffusion.errors import InputError
from blip_diffusion.serving.page.tuning import Tuning, TuningState, last_step

LIMIT = 300.0
SETTINGS: dict[str, Any] = {"category": "dog", "name": "rex", "model": "tiny", "trainable": "embedding", "steps": 2}


@pytest.fixture
def photo(tmp_path: Path, dog: Image.Image) -> Path:
    path = tmp_path / "dog.png"
    dog.save(path)
    return path


def ended(tuning: Tuning) -> TuningState:
    deadline = monotonic() + LIMIT
    while tuning.state().text.startswith(("Tuning", "Ending")):
        assert monotonic() < deadline
        sleep(0.2)
    return tuning.state()


@pytest.mark.faces
def test_the_tuned_subject_is_stored(service: Any, photo: Path) -> None:
    tuning = Tuning(service)
    assert tuning.state() == TuningState("No tuning yet.")
    tuning.start([photo], **SETTINGS)
    with pytest.raises(InputError, match="rex is being tuned"):
        tuning.start([photo], **SETTINGS)
    state = ended(tuning)
    assert (state.text, state.running) == ("rex is in Subjects.", False)
    assert [one.header.name for one in service.store.subjects()] == ["rex"]
    service.store.remove_subject(next(iter(service.store.subjects())).id)


@pytest.mark.faces
def test_the_message_of_a_failed_tuning_is_shown(service: Any, tmp_path: Path) -> None:
    tuning, text = Tuning(service), tmp_path / "dog.png"
    text.write_text("no image")
    tuning.start([text], **SETTINGS)
    assert ended(tuning).text.startswith("Failed: ")
    assert "00.png" in tuning.state().text


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"name": "../rex"}, "'../rex' can't be used"),
        ({"category": " "}, "category is empty"),
        ({"steps": 2001}, "number of steps is 2001"),
    ],
)
def test_invalid_settings_are_refused(service: Any, photo: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Tuning(service).start([photo], **SETTINGS | changed)
    with pytest.raises(InputError, match="There are 0 photos"):
        Tuning(service).start([], **SETTINGS)


def test_last_step_reads_whole_lines_only(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    assert last_step(path) == 0
    path.write_text(json.dumps({"step": 10}) + "\n" + json.dumps({"step": 20}) + '\n{"step": 3')
    assert last_step(path) == 20
