"""Project files: one version everywhere, both licences, one set of pinned dependencies."""

import re
import tomllib
from pathlib import Path

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
