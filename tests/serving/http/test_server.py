import base64
import io
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("fastapi")
pytest.importorskip("dbos")
from starlette.testclient import TestClient

from blip_diffusion.errors import InputError
from blip_diffusion.generation.output import png_with_metadata
from blip_diffusion.generation.png_metadata import METADATA
from blip_diffusion.images import png_bytes
from blip_diffusion.serving.http.guards import MAX_BODY
from blip_diffusion.serving.http.keys import new_key, read_keys
from blip_diffusion.serving.http.server import check_address, check_exposure, create_app

PNG = base64.b64encode(png_bytes(Image.new("RGB", (16, 16)))).decode()


@pytest.fixture(scope="module")
def client(service: Any) -> TestClient:
    return TestClient(create_app(service), base_url="http://localhost")


@pytest.fixture(scope="module")
def body(dog_png: bytes) -> dict[str, Any]:
    reference = "data:image/png;base64," + base64.b64encode(dog_png).decode()
    return {"prompt": "in the snow", "reference": reference, "category": "dog", "steps": 2}


def events(text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for block in text.replace("\r", "").split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
        if "data" in lines:
            yield lines["event"], json.loads(lines["data"])


def test_image_response_has_the_format_of_openai(client: TestClient, body: dict[str, Any]) -> None:
    response = client.post("/v1/images/generations", json=body | {"n": 2}).json()
    images = [base64.b64decode(image["b64_json"]) for image in response["data"]]
    assert [image[:4] for image in images] == [b"\x89PNG"] * 2
    assert images[0] != images[1]


def test_edits_accept_an_upload(client: TestClient, dog_png: bytes) -> None:
    fields = {"prompt": "in the snow", "category": "dog", "steps": "2", "response_format": "url"}
    response = client.post("/v1/images/edits", data=fields, files={"image": ("dog.png", dog_png, "image/png")}).json()
    assert client.get(response["data"][0]["url"]).headers["content-type"] == "image/png"


@pytest.mark.parametrize(
    ("fields", "names", "sentence"),
    [
        ({"prompt": ["x", "y"]}, ["image"], "prompt is given twice: give it once."),
        ({"prompt": "x"}, ["image", "mask", "mask"], "mask is given twice: give it once."),
        ({"prompt": "x"}, ["image", "category"], "category: a file has no effect here."),
        ({"prompt": "x"}, ["image", "photo"], "photo: a file has no effect here."),
    ],
)
def test_edits_drop_no_field(
    client: TestClient, dog_png: bytes, fields: dict[str, Any], names: list[str], sentence: str
) -> None:
    files = [(name, ("dog.png", dog_png, "image/png")) for name in names]
    response = client.post("/v1/images/edits", data={"steps": "1", **fields}, files=files)
    assert response.status_code == 422 and response.json()["detail"] == sentence


@pytest.mark.parametrize("path", ["/v1/images/generations", "/v1/jobs"])
def test_a_key_given_twice_in_a_body_is_refused(client: TestClient, body: dict[str, Any], path: str) -> None:
    text = json.dumps(body).replace("{", '{"steps": 3, ', 1)
    response = client.post(path, content=text, headers={"Content-Type": "application/json"})
    assert response.status_code == 422
    assert response.json()["detail"] == "The body is not valid JSON: the key 'steps' is given twice."


def test_a_request_without_a_body_may_have_its_content_type(client: TestClient) -> None:
    """Many clients send one with every request."""
    json_type = {"Content-Type": "application/json"}
    assert client.get("/v1/jobs", headers=json_type).status_code == 200
    response = client.post("/v1/jobs", headers=json_type)
    assert (response.status_code, response.json()["code"]) == (422, "invalid_input")


def test_partial_images_are_streamed(client: TestClient, body: dict[str, Any]) -> None:
    response = client.post("/v1/images/generations", json=body | {"stream": True, "partial_images": 1, "seed": 3})
    kinds = [kind for kind, data in events(response.text) if data["b64_json"]]
    assert kinds == ["image_generation.partial_image", "image_generation.completed"]


def test_job_continues_without_a_connection(client: TestClient, body: dict[str, Any]) -> None:
    response = client.post("/v1/jobs", json=body, headers={"Idempotency-Key": "a"})
    again = client.post("/v1/jobs", json=body, headers={"Idempotency-Key": "a"})
    address = response.headers["location"]
    assert (response.status_code, again.json()["id"]) == (202, response.json()["id"])
    text = client.get(f"{address}/events").text
    kinds = [kind for kind, _ in events(text)]
    assert (kinds[0], kinds[-1]) == ("queued", "done")
    last = [line for line in text.replace("\r", "").splitlines() if line.startswith("id: ")][-2].removeprefix("id: ")
    rest = client.get(f"{address}/events", headers={"Last-Event-ID": last}).text
    assert [kind for kind, _ in events(rest)] == ["done"]
    assert client.get(address).json()["state"] == "done"
    assert client.delete(address).json()["state"] == "done"
    assert client.post(f"{address}/again").status_code == 202
    assert response.json()["id"] in [job["id"] for job in client.get("/v1/jobs").json()["data"]]


def test_image_is_reproduced_from_an_upload(client: TestClient, body: dict[str, Any], dog_png: bytes) -> None:
    address = client.post("/v1/images/generations", json=body | {"response_format": "url"}).json()["data"][0]["url"]
    png = client.get(address).content
    response = client.post("/v1/jobs/reproduce", files={"file": ("x.png", png)})
    assert response.status_code == 202
    refused = client.post("/v1/jobs/reproduce", files={"file": ("x.png", dog_png)})
    assert refused.status_code == 422


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"num_images": 1000}, "asks for 1000 images"),
        ({"prompts": ["x"] * 11}, "asks for 11 images"),
        ({"steps": 1000}, "asks for 1000 steps"),
        ({"width": 4096}, "asks for sides"),
        ({"height": 0}, "asks for sides"),
        ({"upscaler": "owner/repository"}, "was enlarged by another model"),
        ({"model": "owner/repository"}, "a model that this server doesn't have"),
        ({"controls": [{"kind": "map", "image": PNG}] * 3}, "more controls than 2"),
        ({"controls": [{"kind": "map", "image": PNG, "end": 2}]}, "end is 2.0: use a number above 0, up to 1."),
        ({"prompts": ["a \x1b[2J"]}, "text without control characters"),
    ],
)
def test_a_reproduced_png_may_not_ask_for_more_than_a_body(
    client: TestClient, body: dict[str, Any], change: dict[str, Any], sentence: str
) -> None:
    address = client.post("/v1/images/generations", json=body | {"response_format": "url"}).json()["data"][0]["url"]
    response = client.post(
        "/v1/jobs/reproduce", files={"file": ("x.png", with_metadata(client.get(address).content, change))}
    )
    assert response.status_code == 422 and sentence in response.json()["detail"]


def test_no_engine_is_compiled_for_a_reproduced_png(client: TestClient, service: Any, body: dict[str, Any]) -> None:
    """It would take minutes, and change the pipeline that other jobs use."""
    address = client.post("/v1/images/generations", json=body | {"response_format": "url"}).json()["data"][0]["url"]
    png = with_metadata(client.get(address).content, {"engine": "compiled"})
    job = client.post("/v1/jobs/reproduce", files={"file": ("x.png", png)}).json()
    assert service.get(job["id"]).request.engine == "torch"
    assert service.wait(job["id"], timeout=60).state == "done"


@pytest.mark.parametrize(
    ("kind", "colour", "sentence"),
    [
        *((kind, "white", f"There is no ControlNet for {kind} and this model") for kind in ("mask", "canny", "map")),
        ("depth", "grey", "There is no ControlNet for depth and this model"),
        ("normal", "#8080ff", "There is no ControlNet for normal and this model"),
        ("mask", "grey", "is no mask: use one that is black and white"),
        ("depth", "red", "The control image is no depth map: use a grey image, bright where it is near."),
        ("normal", "grey", "The control image is no normal map: use an image of unit vectors"),
    ],
)
def test_controls_that_cannot_be_served_are_refused_at_once(
    client: TestClient, service: Any, body: dict[str, Any], kind: str, colour: str, sentence: str
) -> None:
    while not service.is_ready:
        time.sleep(0.05)
    png = png_bytes(Image.new("RGB", (32, 32), colour))
    controls = [{"kind": kind, "image": "data:image/png;base64," + base64.b64encode(png).decode()}]
    response = client.post("/v1/jobs", json=body | {"controls": controls})
    assert response.status_code == 422 and sentence in response.json()["detail"]


def test_controls_of_a_model_that_is_not_loaded_are_accepted(
    client: TestClient, service: Any, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.pool, "control_kinds", None)
    controls = [{"kind": "map", "image": f"data:image/png;base64,{PNG}"}]
    job = service.wait(client.post("/v1/jobs", json=body | {"controls": controls}).json()["id"], timeout=60)
    assert job.state == "failed" and "There is no ControlNet for map and this model" in job.problem


def with_metadata(png: bytes, change: dict[str, Any]) -> bytes:
    """Return a PNG file with other settings inside, as for a grid where there are prompts."""
    with Image.open(io.BytesIO(png)) as image:
        table = json.loads(image.info[METADATA]) | change
        if "prompts" in change or "num_images" in change:
            table.setdefault("prompts", [table["prompt"]])
            del table["prompt"]
        return png_with_metadata(image, json.dumps(table))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"reference": "http://169.254.169.254/latest"}, "reference"),
        ({"reference": "file:///etc/passwd"}, "reference"),
        ({"reference": "data:image/png;base64,AAAA"}, None),
        ({"controls": [{"kind": "canny", "image": "http://169.254.169.254/latest"}]}, "controls"),
        ({"controls": [{"kind": "canny", "image": "data:image/png;base64,AAAA"}]}, "controls"),
        ({"controls": [{"kind": "hed", "image": "data:image/png;base64,AAAA"}]}, "controls.0.kind"),
        ({"controls": [{"kind": "canny", "image": "data:image/png;base64,AAAA", "end": 0}]}, "controls.0.end"),
        ({"reference": None}, None),
        ({"steps": 1000}, "steps"),
        ({"size": "00x00"}, "size"),
        ({"size": "9999x64"}, "size"),
        ({"n": 11}, "n"),
        ({"model": "/etc"}, None),
        ({"subject": "../../x"}, None),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_invalid_bodies_return_problem_documents(
    client: TestClient, body: dict[str, Any], change: dict[str, Any], field: str | None
) -> None:
    response = client.post("/v1/images/generations", json=body | change)
    problem = response.json()
    assert response.status_code in (404, 422), problem
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["detail"] == problem["error"]["message"]
    assert field in (None, problem["error"]["param"])


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Content-Length": str(MAX_BODY + 1)}, 413),
        ({"Origin": "http://localhost"}, 200),
    ],
)
def test_foreign_and_large_requests_are_refused(client: TestClient, headers: dict[str, str], status: int) -> None:
    assert client.get("/healthz", headers=headers).status_code == status


def test_large_image_is_refused_before_decoding(client: TestClient, huge_png: Any, body: dict[str, Any]) -> None:
    data = base64.b64encode(huge_png(20_000).read_bytes()).decode()
    response = client.post("/v1/images/generations", json=body | {"reference": f"data:image/png;base64,{data}"})
    assert response.status_code == 422


def test_subjects_must_be_safetensors(client: TestClient) -> None:
    response = client.post("/v1/subjects", files={"file": ("rex.safetensors", b"\x80\x04\x95")})
    assert response.status_code == 422
    assert client.get("/v1/subjects").json()["data"] == []
    assert client.get("/v1/subjects/" + "0" * 64).status_code == 404


def test_health_and_metrics_routes(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json()["status"] == "ready"
    assert "blip_diffusion_jobs_waiting" in client.get("/metrics").text
    assert client.get("/v1/models").json()["data"][0]["id"] == "tiny"
    assert "/v1/images/generations" in client.get("/v1/openapi.json").json()["paths"]


def test_keys_separate_owners(service: Any, body: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "keys"
    alice, bob = ({"Authorization": f"Bearer {new_key(path, name)}"} for name in ("alice", "bob"))
    assert "bd-" not in path.read_text()
    client = TestClient(create_app(service, keys=read_keys(path)), base_url="http://localhost")
    assert client.get("/v1/jobs").status_code == 401
    assert client.get("/v1/jobs", headers={"Authorization": "Bearer bd-wrong"}).status_code == 401
    address = client.post("/v1/jobs", json=body, headers=alice).headers["location"]
    assert client.get(address, headers=alice).status_code == 200
    assert client.get(address, headers=bob).status_code == 404
    assert client.delete(address, headers=bob).status_code == 404


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "is not a file of API keys"),
        (b"\x89PNG\r\n\x1a\n\0", "can't be read"),
        (b"alice secret\n", "is not a file of API keys"),
        (f"alice {'0' * 64}\nalice {'1' * 64}\n".encode(), "two keys of one name"),
    ],
)
def test_other_files_are_no_keys(data: bytes, sentence: str, tmp_path: Path) -> None:
    """Nothing is added to them, either."""
    path = tmp_path / "keys"
    path.write_bytes(data)
    with pytest.raises(InputError, match=sentence):
        read_keys(path)
    if data:
        with pytest.raises(InputError, match=sentence):
            new_key(path, "bob")
    assert path.read_bytes() == data


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_keys_are_a_file(make: Callable[[Path], object], tmp_path: Path) -> None:
    make(tmp_path / "keys")
    for read in (read_keys, lambda path: new_key(path, "bob")):
        with pytest.raises(InputError, match="can't be read"):
            read(tmp_path / "keys")


def test_an_address_that_cannot_be_used_is_a_sentence() -> None:
    for port in (-1, 65536, 10**20):
        with pytest.raises(InputError, match=f"--port is {port}: use a number from 0 to 65535"):
            check_address("127.0.0.1", port)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"--port {port} can't be listened to"):
            check_address("127.0.0.1", port)
    check_address("127.0.0.1", port)
    check_address("localhost", 0)


def test_server_without_keys_listens_on_loopback_only() -> None:
    check_exposure("127.0.0.1", None)
    with pytest.raises(InputError, match="--keys"):
        check_exposure("0.0.0.0", None)
