"""Write `constraints.txt` and `requirements.lock` from `pyproject.toml`: `python tools/lock.py [--upgrade]`; needs uv.

`constraints.txt` pins the versions that are tested; pip takes whatever build of torch its index offers, CPU or CUDA.
`requirements.lock` adds the SHA-256 of every file, torch and its own dependencies excepted: their files differ between
the CPU and the CUDA build, so no one lock can hold both.
"""

import argparse
import re
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
CONSTRAINTS, LOCK = ROOT / "constraints.txt", ROOT / "requirements.lock"
COMMAND = (
    "uv pip compile pyproject.toml --extra dev --extra docs --extra openvino --extra faces"
    " --extra heic --extra weighting --extra safety"
    " --universal --python-version 3.11 --no-annotate --no-header --quiet"
)
PILLOW = "pillow>=13\n"
"""Gradio wants an older one. What is locked is the environment of `make test`, where Gradio is not installed."""
NEVER = "sys_platform == 'never'"
CUDA = re.compile(r"^(nvidia-|triton|cuda-)")
INSTALL = """\
# Written by tools/lock.py. With hashes, after torch (any build):
#   pip install --constraint constraints.txt torch
#   pip install --require-hashes --no-deps --requirement requirements.lock
"""


def main() -> None:
    """Write both files; without `--upgrade`, versions stay as they are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions")
    upgrade = parser.parse_args().upgrade
    pinned = compiled([] if upgrade else ["--constraint", str(CONSTRAINTS)], overrides=PILLOW)
    CONSTRAINTS.write_text("".join(entry for entry in entries(pinned) if not CUDA.match(entry)), encoding="utf-8")
    locked = compiled(["--constraint", str(CONSTRAINTS), "--generate-hashes"], overrides=f"{PILLOW}torch ; {NEVER}\n")
    LOCK.write_text(INSTALL + "".join(entry for entry in entries(locked) if NEVER not in entry), encoding="utf-8")


def compiled(options: list[str], *, overrides: str) -> str:
    """Return what uv resolves, with requirements that replace those of packages."""
    with tempfile.TemporaryDirectory() as folder:
        override = Path(folder, "override.txt")
        override.write_text(overrides, encoding="utf-8")
        command = [*COMMAND.split(), *options, "--override", str(override)]
        return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def entries(text: str) -> list[str]:
    """Return the requirements in a file, each with the lines of its hashes."""
    return re.findall(r"^\S.*\n(?:[ \t]+.*\n)*", text, re.MULTILINE)


if __name__ == "__main__":
    main()
