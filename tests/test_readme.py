"""The README's promises: every path it names is there, every command that it or a document shows is a command."""

import re
import shlex
from pathlib import Path

import pytest

from blip_diffusion.cli.main import build_parser

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([^)#:]+)\)", TEXT))))
def test_links_lead_somewhere(path: str) -> None:
    assert (ROOT / path).exists()


def commands() -> list[str]:
    text = "\n".join(document.read_text(encoding="utf-8") for document in DOCUMENTS)
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL))
    return [line.split("  #")[0].strip() for line in blocks.splitlines() if line.startswith("blip-diffusion ")]


@pytest.mark.parametrize("command", commands())
def test_commands_are_understood(command: str) -> None:
    try:
        build_parser().parse_args(shlex.split(command)[1:])
    except SystemExit as ended:  # --version and --help print and end
        assert ended.code == 0


def test_images_named_in_commands_are_there() -> None:
    for path in re.findall(r"examples/[\w.-]+", TEXT):
        assert (ROOT / path).exists(), path


def test_targets_of_make_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", TEXT, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
