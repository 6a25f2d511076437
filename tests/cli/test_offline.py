"""No command tries to connect unless a hub id was given."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blip_diffusion.cli.main import main
from tests.data.benchmarks.test_dreambench import published

from .commands import output_files

CONFIGS = Path(__file__).parents[2] / "configs" / "debug"
WORLD = Path(__file__).parents[1] / "fixtures" / "world.zip"

COMMANDS = {
    "generate": "generate beach --model {model} --reference {dog} --category dog --steps 1 --out images",
    "tune": "tune {dog} --category dog --name rex --model {model} --train-steps 2 --masks none --out r.safetensors",
    "train": "train {configs}/autoencoder.toml --out run --set train.steps=2 --set data.path={world}",
    "edit": "edit {dog} --model {model} --from dog --to dog --reference {dog} --steps 2 --mask none --out edits",
    "convert": "convert {model} --out converted",
    "evaluate help": "evaluate --help",
    "evaluate": "evaluate --model {model} --benchmark bench --out report --steps 1 --subjects 2 --prompts 2 --seeds 1 "
    "--metrics dino={dino}",
    "mistyped metric": "evaluate --model {model} --benchmark bench --out report --metrics dino=bench/folder",
    "caption": "caption {dog} --model {blip2} --num-beams 1 --max-new-tokens 2 --out captions.jsonl",
    "mistyped model of captions": "caption {dog} --model ./no/model",
    "search": "search bench/dataset/dog2 dog --model {blip2}",
    "invent": "invent apple --model {prior} --steps 1 --out apple.safetensors",
    "doctor": "doctor",
    "mistyped model": "generate beach --model ./no/model.safetensors --reference {dog} --category dog",
    "mistyped LoRA": "generate beach --model {model} --reference {dog} --category dog --lora no.safetensors",
}


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Block sockets, with huggingface_hub online; list the attempts."""
    addresses: list[Any] = []

    def refuse(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **_: Any) -> Any:
            addresses.append((name, [one for one in arguments if not isinstance(one, socket.socket)]))
            raise OSError("the network is blocked")

        return call

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse(name))
    for name in ("create_connection", "getaddrinfo", "gethostbyname"):
        monkeypatch.setattr(socket, name, refuse(name))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return addresses


@pytest.mark.parametrize("name", COMMANDS)
def test_nothing_connects(
    name: str,
    attempts: list[Any],
    models: dict[str, str],
    reference: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    published(Path("bench"))
    places = {f"{{{word.lower()}}}": path for word, path in models.items()}
    places |= {"{dog}": str(reference), "{configs}": str(CONFIGS), "{world}": str(WORLD)}
    command = COMMANDS[name]
    for key, path in places.items():
        command = command.replace(key, path)
    try:
        code = main(command.split())
    except SystemExit as end:  # of --help
        code = int(end.code or 0)
    assert not attempts
    assert code == (2 if name.startswith("mistyped") else 0), capsys.readouterr().err
    written = [path for path in output_files() if not path.startswith("bench/")]
    assert bool(written) == (code == 0 and name not in ("evaluate help", "doctor", "search"))


def test_a_hub_id_is_what_connects(attempts: list[Any], reference: Path, tmp_path: Path) -> None:
    main(["generate", "beach", "--model", "nobody/no-such-model", "--reference", str(reference), "--category", "dog",
          "--out", str(tmp_path / "out")])  # fmt: skip
    assert attempts
