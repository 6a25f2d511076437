"""The official client of OpenAI's API against a real server."""

import base64
import io
from typing import Any

import pytest

openai = pytest.importorskip("openai")
pytestmark = pytest.mark.faces


@pytest.fixture(scope="module")
def client(address: str) -> Any:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def fields(dog_png: bytes) -> dict[str, Any]:
    reference = "data:image/png;base64," + base64.b64encode(dog_png).decode()
    return {"reference": reference, "category": "dog", "steps": 4}


def test_generate(client: Any, fields: dict[str, Any]) -> None:
    response = client.images.generate(prompt="on the beach", n=2, extra_body=fields)
    assert all(base64.b64decode(image.b64_json)[:4] == b"\x89PNG" for image in response.data)
    assert len(response.data) == 2


def test_edit(client: Any, dog_png: bytes) -> None:
    file = io.BytesIO(dog_png)
    file.name = "dog.png"
    response = client.images.edit(image=file, prompt="on the beach", extra_body={"category": "dog", "steps": 4})
    assert base64.b64decode(response.data[0].b64_json)[:4] == b"\x89PNG"


def test_stream(client: Any, fields: dict[str, Any]) -> None:
    stream = client.images.generate(prompt="in the snow", stream=True, partial_images=2, extra_body=fields)
    kinds = [event.type for event in stream]
    assert kinds[-1] == "image_generation.completed"
    assert kinds[:-1] == ["image_generation.partial_image"] * 2


def test_errors_have_a_class_and_a_field(client: Any) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        client.images.generate(prompt="x", extra_body={"reference": "http://localhost/x.png", "category": "dog"})
    assert (caught.value.code, caught.value.param) == ("invalid_input", "reference")
