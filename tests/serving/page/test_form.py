from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
from PIL import Image

from blip_diffusion.annotators import UploadKind
from blip_diffusion.errors import InputError
from blip_diffusion.generation.request import ControlInput, GenerationRequest
from blip_diffusion.serving.page.form import (
    CONTROLS,
    NO_CONTROL,
    Form,
    control_choices,
    from_request,
    settings_of,
    to_request,
)


@pytest.fixture
def form(tmp_path: Path, dog: Image.Image) -> Form:
    dog.save(tmp_path / "dog.png")
    return Form("on the beach\nin the snow", str(tmp_path / "dog.png"), "dog", (), 2, 7, "fast", "tiny", steps=3)


def test_a_request_fills_the_form_that_made_it(service: Any, form: Form) -> None:
    assert replace(from_request(to_request(form, service), service), reference=form.reference) == form


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"box": (0.0, 0.0, 0.5, 0.5)}, "a box,"),
        ({"width": 64, "height": 32}, "a size,"),
        ({"controls": (ControlInput("map", b""),)}, "a control image,"),
        ({"subject_scale": (1.0, 1.0, 0.5)}, "a subject scale,"),
        ({"more_references": (b"",), "prompt_weighting": True}, "several references, weights on words,"),
    ],
    ids=str,
)
def test_settings_without_a_field_are_named(
    service: Any, request_of_dog: GenerationRequest, change: dict[str, Any], word: str
) -> None:
    with pytest.raises(InputError, match=f"made with {word} which the form doesn't have: generate it again in Queue"):
        from_request(replace(request_of_dog, **change), service)


def test_control_images(service: Any, form: Form, tmp_path: Path, dog: Image.Image) -> None:
    cutout = dog.copy()
    cutout.putalpha(Image.linear_gradient("L").resize(dog.size))
    cutout.save(tmp_path / "cutout.png")
    path = str(tmp_path / "cutout.png")
    (mask,) = to_request(replace(form, control="mask of the subject", control_image=path), service).controls
    chosen = replace(form, control="edges", control_image=path, control_scale=0.5, control_end=0.7)
    (edges,) = (request := to_request(chosen, service)).controls
    assert (mask.kind, mask.is_map, edges.kind, edges.is_map) == ("mask", True, "canny", False)
    assert (mask.scale, mask.end, edges.scale, edges.end) == (1, 1, 0.5, 0.7)
    assert dict(settings_of(request))["Control"] == "canny, scale 0.5, until 0.7 of the steps"
    with pytest.raises(InputError, match="There is no control image: upload one"):
        to_request(replace(form, control="edges"), service)
    with pytest.raises(InputError, match="is no mask: use one that is black and white"):
        to_request(replace(form, control="mask of the subject", control_image=form.reference), service)
    with pytest.raises(InputError, match="is no depth map: use a grey image"):
        to_request(replace(form, control="depth map", control_image=form.reference), service)


def test_the_kinds_that_the_model_serves_are_offered() -> None:
    served: dict[str, tuple[str, ...]] = {"mini": ("canny", "mask"), "plain": ()}
    service: Any = SimpleNamespace(control_kinds=served.get)
    assert control_choices(service, "mini") == [NO_CONTROL, "mask of the subject", "edges"]
    assert control_choices(service, "plain") == [NO_CONTROL]
    assert control_choices(service, "not loaded") == [NO_CONTROL, *CONTROLS]
    assert sorted(CONTROLS.values()) == sorted(get_args(UploadKind))
