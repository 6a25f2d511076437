"""Send SIGINT to `generate` and `tune` at moments spread over their lives, imports included.

    python benchmarks/interrupts.py --model MODEL_FOLDER --moments 20 --out out/interrupts

A process must end with exit code 130, one line on stderr, and no file but whole ones; one that ended before the signal
arrived must end with 0. Prints each failure, and the counts. Runs on a CPU, in one thread.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image, ImageDraw
from safetensors import safe_open

BAR = re.compile(r"[^\n]*\r")
"""A progress bar redraws its line."""


@dataclass(frozen=True)
class Ended:
    """A process that has ended.

    Args:
        code: The exit code.
        error: The text on stderr, without progress bars.
        damaged: Incomplete files under a final name, and temporary files.
        seconds: How long it ran.
    """

    code: int
    error: str
    damaged: tuple[str, ...] = ()
    seconds: float = 0.0


def started(words: list[str]) -> subprocess.Popen[str]:
    """Start a command in a process."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "blip_diffusion", *words]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)


def ended(words: list[str], out: Path, moment: float | None) -> Ended:
    """Run a command, send SIGINT after some seconds, and return how it ended."""
    out.mkdir(parents=True)
    began, process = time.perf_counter(), started(words)
    try:
        _, error = process.communicate(timeout=moment)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=600)
    result = Ended(process.returncode, BAR.sub("", error), damaged(out), time.perf_counter() - began)
    shutil.rmtree(out)
    return result


def damaged(out: Path) -> tuple[str, ...]:
    """Return the names of files that are incomplete. The folder of a tuning that can be resumed may hold any."""
    return tuple(str(path.relative_to(out)) for path in out.iterdir() if path.is_file() and not is_whole(path))


def is_whole(path: Path) -> bool:
    """Return whether an image or a subject file can be read, and has its final name."""
    if path.name.startswith(".partial"):
        return False
    try:
        if path.suffix == ".png":
            with Image.open(path) as image:
                image.load()
        elif path.suffix == ".safetensors":
            with safe_open(path, "np") as file:
                file.keys()
    except Exception:
        return False
    return True


def is_right(result: Ended) -> bool:
    """Return whether a process ended as it must."""
    if result.damaged or "Traceback" in result.error or "ignored in" in result.error:
        return False
    lines = [line for line in result.error.splitlines() if line.strip()]
    return result.code == 0 or (result.code == 130 and lines[-1:] == ["blip-diffusion: interrupted"])


def measured(name: str, words: list[str], out: Path, moments: int) -> str:
    """Interrupt a command at moments spread evenly over its life, and return the counts."""
    whole = ended(words, out, None)
    if whole.code:
        raise SystemExit(whole.error)
    results = [ended(words, out, whole.seconds * (index + 0.5) / moments) for index in range(moments)]
    failed = [replace(result, error=result.error[-600:]) for result in results if not is_right(result)]
    for result in failed:
        print(f"{name}: {result}", flush=True)
    codes = {code: sum(result.code == code for result in results) for code in sorted({r.code for r in results})}
    return (
        f"{name}: {moments - len(failed)} of {moments} right; exit codes {codes}; {whole.seconds:.1f} s uninterrupted"
    )


def main() -> None:
    """Interrupt both commands."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True)
    photo, out = arguments.out / "dog.png", arguments.out / "results"
    image = Image.new("RGB", (64, 48), "lightblue")
    ImageDraw.Draw(image).ellipse((14, 12, 50, 44), fill="saddlebrown")
    image.save(photo)
    model = ["--model", str(arguments.model), "--device", "cpu"]
    generate = ["generate", "on the beach", "--reference", str(photo), "--category", "dog", *model, "--out", str(out)]
    tune = ["tune", str(photo), "--category", "dog", "--name", "rex", "--masks", "none", *model, "--train-steps", "6"]
    print(measured("generate", generate, out, arguments.moments), flush=True)
    print(measured("tune", [*tune, "--out", str(out / "rex.safetensors")], out, arguments.moments), flush=True)


if __name__ == "__main__":
    main()
