"""Hostile model folders, archives, pickles, uploads and jobs: accepted rightly, or refused with one sentence."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from blip_diffusion import BlipDiffusionPipeline
from blip_diffusion.errors import CheckpointError

from .conftest import Attempt
from .images import ACCEPTED, EPS, REFUSED, encoded, noise
from .weights import ARCHIVES, CONFIGS, PICKLES, SAFETENSORS

WORDS = ("--model", "model", "--device", "cpu")
GENERATE = ("generate", "on the beach", "--category", "dog", "--steps", 1, *WORDS)
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept"),
]


def cases(*tables: Mapping[str, Callable[[], bytes]]) -> pytest.MarkDecorator:
    """Parametrise a test by the files of tables."""
    table = {name: make for files in tables for name, make in files.items()}
    return pytest.mark.parametrize("make", table.values(), ids=table.keys())


@pytest.fixture(autouse=True)
def _model(tmp_path: Path, tiny_folder: Path) -> None:
    """A copy of the tiny model by hard links, and an image, in the working directory."""
    shutil.copytree(tiny_folder, tmp_path / "model", copy_function=os.link)
    (tmp_path / "dog.png").write_bytes(encoded(noise(), "PNG"))


def written(name: str, make: Callable[[], bytes]) -> str:
    """Write a file and return its name."""
    path = Path(name)
    path.unlink(missing_ok=True)
    path.write_bytes(make())
    return name


@cases(ACCEPTED)
def test_generate_reads_unusual_references(attempt: Attempt, make: Callable[[], bytes]) -> None:
    assert attempt(*GENERATE, "--reference", written("x.png", make)) == 0


@cases(SAFETENSORS)
def test_generate_reads_weights(attempt: Attempt, make: Callable[[], bytes]) -> None:
    written("model/unet/diffusion_pytorch_model.safetensors", make)
    assert attempt(*GENERATE, "--reference", "dog.png") == 2


@pytest.mark.parametrize("file", ["model_index.json", "unet/config.json", "vae/config.json", "qformer/config.json"])
@cases(CONFIGS)
def test_generate_reads_configurations(attempt: Attempt, file: str, make: Callable[[], bytes]) -> None:
    written(f"model/{file}", make)
    assert attempt(*GENERATE, "--reference", "dog.png") in (0, 2)


@pytest.mark.parametrize("part", ["tokenizer", "qformer_tokenizer"])
@pytest.mark.parametrize("length", [{}, [[1]], "x", None, True, 0, -1, [None]])
def test_a_tokenizer_has_a_longest_text(tmp_path: Path, part: str, length: object) -> None:
    file = Path(tmp_path, "model", part, "tokenizer_config.json")
    table = json.loads(file.read_text())
    file.unlink()  # it is a hard link
    file.write_text(json.dumps({**table, "model_max_length": length}))
    if length is None or (part == "qformer_tokenizer" and (file.parent / "vocab.txt").exists()):
        return  # the length of the class, or another file is read
    with pytest.raises(CheckpointError, match=r"model_max_length|can't be loaded|no WordPiece vocabulary"):
        BlipDiffusionPipeline.from_pretrained(tmp_path / "model")


def twice(text: str) -> str:
    """Return a JSON object whose first key is there twice."""
    key = next(iter(json.loads(text)))
    return text.replace("{", f"{{{json.dumps(key)}: 7, ", 1)


def test_a_key_given_twice_is_refused_in_each_file_of_a_model(attempt: Attempt) -> None:
    for path in sorted(Path("model").rglob("*.json")):
        kept = path.read_text()
        path.unlink()  # it is a hard link
        path.write_text(twice(kept))
        with pytest.raises(CheckpointError, match=r"the key '.*' is given twice"):
            BlipDiffusionPipeline.from_pretrained("model")
        path.write_text(kept)
    assert attempt(*GENERATE, "--reference", "dog.png") == 0


@pytest.mark.slow
@cases(CONFIGS)
def test_generate_reads_tokenizers_and_schedulers(attempt: Attempt, make: Callable[[], bytes]) -> None:
    for part in ("tokenizer", "scheduler", "text_encoder"):
        for path in sorted(Path("model", part).glob("*.json")):
            kept = path.read_bytes()
            written(str(path), make)
            assert attempt(*GENERATE, "--reference", "dog.png", "--out", f"out-{part}-{path.stem}") in (0, 2)
            written(str(path), lambda kept=kept: kept)


@cases(REFUSED, ACCEPTED)
def test_generate_reproduces_images(attempt: Attempt, make: Callable[[], bytes]) -> None:
    assert attempt("generate", "--reproduce", written("x.png", make)) == 2


@cases(ARCHIVES, PICKLES)
def test_convert_reads_archives(attempt: Attempt, make: Callable[[], bytes]) -> None:
    for name in ("x.tar.gz", "x.pth", "x.ckpt"):
        assert attempt("convert", written(name, make), "--out", "out") == 2
    assert not Path("/tmp/outside.txt").exists()


@cases(SAFETENSORS)
def test_convert_reads_weights(attempt: Attempt, make: Callable[[], bytes]) -> None:
    name = written("x.safetensors", make)
    assert attempt("convert", name, "--out", "out") == 2
    assert attempt("convert", "model", "--unet", name, "--out", "out") == 2
    assert attempt("convert", "model", "--vae", name, "--out", "out") == 2


@cases(PICKLES)
def test_caption_and_search_read_models(attempt: Attempt, make: Callable[[], bytes]) -> None:
    name = written("x.pth", make)
    assert attempt("caption", "dog.png", "--model", name, "--base", "model") == 2
    assert attempt("search", ".", "a dog", "--model", name, "--base", "model") == 2


@cases(CONFIGS)
def test_invent_and_blip2_read_model_folders(attempt: Attempt, make: Callable[[], bytes]) -> None:
    for part in ("subject_prior", "language_model"):
        Path("model", part).mkdir()
        written(f"model/{part}/config.json", make)
    assert attempt("invent", "teapot", "--model", "model", "--out", "teapot.safetensors") == 2
    assert attempt("caption", "dog.png", "--model", "model") == 2


@pytest.fixture(scope="module")
def client(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The HTTP API; what it refuses never reaches a worker."""
    pytest.importorskip("fastapi")
    pytest.importorskip("dbos")
    from starlette.testclient import TestClient

    from blip_diffusion.serving.http.server import create_app
    from blip_diffusion.serving.job_service import JobService
    from blip_diffusion.serving.settings import ServiceSettings

    folder = tmp_path_factory.mktemp("server")
    with JobService(ServiceSettings(folder, models={"tiny": str(tiny_folder)}, devices=("cpu",))) as running:
        yield TestClient(create_app(running), base_url="http://localhost", raise_server_exceptions=False)


UPLOADS = {name: make for name, make in REFUSED.items() if name not in ("one colour", "transparent", "not finite")}


@cases(UPLOADS)
def test_server_reads_uploads(client: Any, make: Callable[[], bytes]) -> None:
    fields = {"prompt": "in the snow", "category": "dog", "steps": "1"}
    response = client.post("/v1/images/edits", data=fields, files={"image": ("x.png", make(), "image/png")})
    assert 400 <= response.status_code < 500, response.text


@cases(CONFIGS)
def test_server_reads_jobs(client: Any, make: Callable[[], bytes]) -> None:
    for path in ("/v1/jobs", "/v1/images/generations"):
        response = client.post(path, content=make(), headers={"Content-Type": "application/json"})
        assert 400 <= response.status_code < 500, response.text


def test_images_of_eps_never_start_ghostscript(attempt: Attempt, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    monkeypatch.setattr("subprocess.Popen.__init__", lambda *words, **_: started.append(words))
    assert attempt(*GENERATE, "--reference", written("x.png", lambda: EPS)) == 2
    assert not started and Image.open("dog.png").size == (64, 64)
