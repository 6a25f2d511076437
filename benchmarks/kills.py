"""Kill `train` and `tune` with SIGKILL at random moments, resume them, and compare with runs that nobody killed.

    python benchmarks/kills.py --kills 100 --out out/kills

Each round starts a command in a forked process, kills it after a random time, and resumes it, until it ends; some
rounds are killed several times. The result must equal an uninterrupted one bit for bit. Runs on a CPU, in one thread.
"""

import argparse
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from blip_diffusion.cli.main import main as run_command

ROOT = Path(__file__).parents[1]
WORLD = ROOT / "tests" / "fixtures" / "world.zip"
STEPS = 6
Start = Callable[[Path, bool], list[str]]


def train(folder: Path, resume: bool) -> list[str]:
    """Return the command of a tiny stage 2, with a checkpoint at each second step."""
    settings = [f"data.path={WORLD}", "model.init_from=[]", "train.device=cpu", f"train.steps={STEPS}",
                "train.save_every=2", "train.sample_every=0", "data.batch_size=2"]  # fmt: skip
    flags = [part for value in settings for part in ("--set", value)]
    again = ["--resume", "latest"] if resume else []
    return ["train", str(ROOT / "configs/debug/text_to_image.toml"), "--out", str(folder), *flags, *again]


def tune(folder: Path, resume: bool) -> list[str]:
    """Return the command of a tuning of the tiny model, on one image."""
    words = ["tune", str(folder.parent / "dog.png"), "--category", "dog", "--name", "rex", "--masks", "none"]
    place = ["--model", str(folder.parent / "model"), "--out", str(folder / "rex.safetensors")]
    return [*words, *place, "--train-steps", str(STEPS), *(["--resume"] if resume else [])]


def started(words: list[str], log: Path) -> int:
    """Run a command in a forked process and return its id."""
    child = os.fork()
    if child:
        return child
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    code = 1
    try:
        code = run_command(words)
    finally:
        os._exit(code)


def finished(words: list[str], log: Path) -> int:
    """Run a command to its end and return its exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(started(words, log), 0)[1])


def kill_one(start: Start, folder: Path, seconds: float, rng: random.Random) -> int:
    """Kill a run one to three times, resume it to its end, and return how often it was killed."""
    folder.mkdir(parents=True)
    log, kills = folder.parent / f"{folder.name}.log", 0
    for attempt in range(rng.choice((1, 1, 2, 3))):
        child = started(start(folder, resumable(start, folder, attempt)), log)
        time.sleep(rng.uniform(0, seconds))
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        kills += os.WIFSIGNALED(status)
        if not os.WIFSIGNALED(status):
            return kills
    code = finished(start(folder, resumable(start, folder, 1)), log)
    if code:
        raise SystemExit(f"exit code {code}: {log.read_text()[-2000:]}")
    return kills


def resumable(start: Start, folder: Path, attempt: int) -> bool:
    """Whether to say --resume: `tune` refuses it after it has ended."""
    return attempt > 0 and not (start is tune and (folder / "rex.safetensors").exists())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return all weights of a result by file and name."""
    found = [path.relative_to(folder) for path in folder.rglob("*.safetensors")]
    files = sorted(folder / path for path in found if path.parts[0] in ("export", "rex.safetensors"))
    return {f"{file.relative_to(folder)}/{name}": value for file in files for name, value in load_file(file).items()}


def steps_of(folder: Path) -> list[tuple[int, float]]:
    """Return what the log says of each step: a step is there once, with its loss."""
    log = next(folder.rglob("log.jsonl"))
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    return [(row["step"], row["loss"]) for row in rows if "loss" in row]


def compare(name: str, start: Start, kills: int, out: Path, rng: random.Random) -> str:
    """Kill one command's runs until there were so many kills, and say how many results were equal."""
    whole = out / f"{name}-whole"
    whole.mkdir(parents=True)
    began = time.perf_counter()
    if finished(start(whole, False), out / f"{name}-whole.log"):
        raise SystemExit((out / f"{name}-whole.log").read_text())
    seconds = time.perf_counter() - began
    expected, losses = weights(whole), steps_of(whole)
    done = rounds = equal = logs = 0
    while done < kills:
        folder = out / f"{name}-{rounds}"
        done += kill_one(start, folder, seconds, rng)
        found = weights(folder)
        rounds += 1
        equal += found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)
        logs += steps_of(folder) == losses
        left = [path for path in folder.rglob("*") if path.name.startswith((".partial", ".unfinished"))]
        if rounds % 10 == 0:
            print(f"{name}: {done} kills in {rounds} runs, {equal} equal, {logs} logs equal", flush=True)
        if left:
            print(f"{name}: left behind {left[:3]}", flush=True)
        shutil.rmtree(folder)
    return f"{name}: {done} kills in {rounds} runs, {equal} equal bit for bit, {logs} logs equal"


def prepare(out: Path) -> None:
    """Write an image and a tiny model into the folder."""
    image = Image.new("RGB", (64, 48), "lightblue")
    ImageDraw.Draw(image).ellipse((14, 12, 50, 44), fill="saddlebrown")
    image.save(out / "dog.png")
    shutil.copytree(out / "train-whole" / "export", out / "model")


def main() -> None:
    """Kill both commands."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--commands", nargs="+", choices=("train", "tune"), default=["train", "tune"])
    arguments = parser.parse_args()
    if arguments.out.exists():
        raise SystemExit(f"{arguments.out} is there already: name a new folder.")
    arguments.out.mkdir(parents=True)
    torch.set_num_threads(1)
    rng = random.Random(arguments.seed)
    if "train" in arguments.commands:
        print(compare("train", train, arguments.kills, arguments.out, rng), flush=True)
    if "tune" in arguments.commands:
        if not (arguments.out / "train-whole").exists():
            finished(train(arguments.out / "train-whole", False), arguments.out / "train-whole.log")
        prepare(arguments.out)
        print(compare("tune", tune, arguments.kills, arguments.out, rng), flush=True)


if __name__ == "__main__":
    main()
