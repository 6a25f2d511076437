"""Project files: one version everywhere, both licences, a complete wheel, one set of pinned dependencies."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import blip_diffusion

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pins(name: str) -> dict[str, str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return {
        f"{package}{marker}": version
        for package, version, marker in re.findall(r"^([\w-]+)==([\w.]+)([^\\\n]*)", text, re.MULTILINE)
    }


def test_version_is_the_same_everywhere() -> None:
    version = PROJECT["version"]
    assert blip_diffusion.__version__ == version
    nodes = tomllib.loads((ROOT / "comfyui" / "pyproject.toml").read_text(encoding="utf-8"))
    assert nodes["project"]["version"] == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## \[(\d[\w.]*)\]", changelog, re.MULTILINE)
    assert newest
    assert newest[1] == version


def test_wheel_contains_both_licences() -> None:
    assert PROJECT["license"] == "Apache-2.0 AND GPL-3.0-or-later"
    for name, words in (("LICENSE", "Apache License"), ("LICENSES/GPL-3.0-or-later.txt", "GNU GENERAL PUBLIC LICENSE")):
        assert name in PROJECT["license-files"]
        assert words in (ROOT / name).read_text(encoding="utf-8")
    assert all((ROOT / name).exists() for name in PROJECT["license-files"])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy, since setuptools writes into the project's folder."""
    pytest.importorskip("setuptools", minversion="77")
    project, out = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", PROJECT["readme"], *PROJECT["license-files"]):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, project / name)
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", project / "src", ignore=ignored, dirs_exist_ok=True)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    ended = subprocess.run([*build, "--wheel-dir", str(out), str(project)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    (path,) = out.glob("*.whl")
    return path


@pytest.mark.slow
def test_wheel_contains_the_package_and_its_licences(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (archive.read(name).decode() for name in names if name.endswith(".dist-info/METADATA"))
    source = ROOT / "src"
    expected = {
        str(path.relative_to(source))
        for path in (source / "blip_diffusion").rglob("*")
        if path.is_file() and path.suffix in (".py", ".toml", ".typed", ".safetensors", ".json", ".txt", ".md")
    }
    assert {"blip_diffusion/py.typed", "blip_diffusion/assets/mini/LICENCES.md"} <= expected
    assert not expected - names
    licences = {name.partition(".dist-info/licenses/")[2] for name in names}
    assert {*PROJECT["license-files"]} <= licences
    assert f"License-Expression: {PROJECT['license']}\n" in metadata


@pytest.mark.slow
def test_wheel_runs(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    command = [sys.executable, "-m", "blip_diffusion", "--version"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert ended.returncode == 0, ended.stderr
    assert PROJECT["version"] in ended.stdout


def test_lock_file_matches_the_constraints() -> None:
    constraints, lock = (
        {key.strip(): version for key, version in pins(name).items()}
        for name in ("constraints.txt", "requirements.lock")
    )
    assert set(lock) <= set(constraints)
    assert all(constraints[package] == version for package, version in lock.items())
    assert "torch" in constraints
    assert "torch" not in lock  # its file differs between the CPU and the CUDA build


def test_every_locked_file_has_a_hash_and_no_address() -> None:
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    entries = re.findall(r"^[\w-]+==.*\n((?:    --hash=sha256:[0-9a-f]{64}.*\n)*)", text, re.MULTILINE)
    assert entries
    assert all(entries)
    for name in ("requirements.lock", "constraints.txt"):
        assert "://" not in (ROOT / name).read_text(encoding="utf-8")
