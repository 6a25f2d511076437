"""Compare the speed of this package with the peer, with the same weights, noise, size and threads.

    make bench                                              # at mini's size, minutes
    python benchmarks/bench.py --sizes mini published       # 12 GB of disk, 8 GB of memory, most of an hour
    python benchmarks/bench.py --against out/bench/bench.json   # also compares with an earlier run

The peer is diffusers 0.33.1 with transformers 4.49.0, the last versions that compute BLIP-Diffusion correctly, in
its own environment. With default settings it uses float32 and 50 steps of PNDM, which are 51 calls. If an image would
take minutes, its time is computed from two short runs, and the report says so. Ratios are computed within one round,
because other load on the machine then affects both sides.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import machine, peak_gflops, unet_gflop
from report import OWN_STEPS, SHORT, STOCK, markdown
from shapes import PIXELS, TINY_VAE, build, latent_shape

from blip_diffusion.devices import has_bfloat16
from blip_diffusion.pipelines.presets import get_preset

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Contender:
    """A variant to measure."""

    name: str
    kind: str  # "ours" or "peer"
    dtype: str = "float32"  # the peer's
    preset: str = ""
    choices: tuple[tuple[str, Any], ...] = ()  # that differ from the preset's
    whole: bool = False  # steps of unequal cost: measured for a complete image, never computed from short runs


ON_OPENVINO, TINY, UNDISTILLED = ("engine", "openvino"), ("tiny_vae", TINY_VAE), ("bundled_lora_steps", None)
CONTENDERS = (
    Contender(STOCK, "peer"),
    Contender("peer, set to bfloat16", "peer", dtype="bfloat16"),
    Contender("ours, exact", "ours", preset="exact"),
    Contender("ours, exact, OpenVINO", "ours", preset="exact", choices=(ON_OPENVINO,)),
    Contender("ours, fast", "ours", preset="fast", whole=True),
    Contender("ours, fast, OpenVINO", "ours", preset="fast", choices=(ON_OPENVINO,), whole=True),
    Contender("ours, turbo", "ours", preset="turbo", choices=(UNDISTILLED,), whole=True),
    Contender("ours, turbo, OpenVINO", "ours", preset="turbo", choices=(UNDISTILLED, ON_OPENVINO), whole=True),
    Contender(
        "ours, turbo, OpenVINO, tiny autoencoder", "ours", preset="turbo", choices=(UNDISTILLED, ON_OPENVINO, TINY),
        whole=True,
    ),
    Contender("ours, turbo, consistency LoRA", "ours", preset="turbo", whole=True),
    Contender("ours, turbo, consistency LoRA, OpenVINO", "ours", preset="turbo", choices=(ON_OPENVINO,), whole=True),
    Contender(
        "ours, turbo, consistency LoRA, OpenVINO, tiny autoencoder", "ours", preset="turbo",
        choices=(ON_OPENVINO, TINY), whole=True,
    ),
)  # fmt: skip


def main() -> None:
    """Measure, print the report, and save it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    parser.add_argument("--sizes", nargs="+", choices=("mini", "published"), default=["mini"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD", help="contenders whose name holds a word")
    parser.add_argument("--peers", type=Path, default=HERE / ".peers", help="the peer's packages")
    parser.add_argument("--against", type=Path, metavar="JSON", help="an earlier report")
    flags = parser.parse_args()
    set_up_peers(flags.peers)
    report: dict[str, Any] = {"machine": machine(), "threads": flags.threads, "sizes": {}}
    report["ceiling"] = peak_gflops(flags.threads)
    earlier = json.loads(flags.against.read_text()) if flags.against else None
    for size in flags.sizes:
        for results in measure(size, flags):  # after each round, so that an interrupted run keeps its results
            report["sizes"][size] = results
            report["load_after"] = os.getloadavg()
            (flags.out / "bench.json").write_text(json.dumps(report, indent=1) + "\n")
            (flags.out / "bench.md").write_text(markdown(report, earlier))
    print((flags.out / "bench.md").read_text())


# ------------------------------------------------------------------------------------------------------ environment


def set_up_peers(folder: Path) -> None:
    """Install the peer's packages in a folder that git ignores. Other packages, such as torch, are shared."""
    if (folder / "diffusers").is_dir():
        return
    pinned = ["diffusers==0.33.1", "transformers==4.49.0", "tokenizers==0.21.4", "huggingface_hub==0.30.2"]
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder), "--no-deps", *pinned],
                   check=True)  # fmt: skip


# ------------------------------------------------------------------------------------------------------- measuring


class Worker:
    """The process of a variant."""

    def __init__(self, contender: Contender, size: str, folder: Path, flags: argparse.Namespace) -> None:
        spec: dict[str, Any] = {"kind": contender.kind, "dtype": contender.dtype, "choices": choices(contender, folder)}
        spec |= {"model": str(folder), "threads": flags.threads, "pixels": PIXELS[size], "latents": latent_shape(size)}
        paths = [str(flags.peers.absolute())] if contender.kind == "peer" else [str(HERE.parent / "src")]
        paths += [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": str(flags.threads),
                       "TRANSFORMERS_VERBOSITY": "error"}  # fmt: skip
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "worker.py"), json.dumps(spec)], env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self.loaded = self._read_response()

    def generate(self, steps: int | None, save: Path | None = None) -> dict[str, float]:
        """Generate an image, and return seconds, CPU seconds and peak memory."""
        assert self._process.stdin is not None
        print(json.dumps({"steps": steps, "save": str(save) if save else None}), file=self._process.stdin, flush=True)
        return self._read_response()

    def _read_response(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"A variant ended with exit code {self._process.wait()}; its output is above.")
        response: dict[str, float] = json.loads(line)
        return response

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def choices(contender: Contender, folder: Path) -> dict[str, Any]:
    """Return all fields of a variant's preset. A tiny autoencoder is in the model folder."""
    if contender.kind == "peer":
        return {}
    chosen = dataclasses.replace(get_preset(contender.preset), **dict(contender.choices))
    tiny = chosen.tiny_vae and str(folder / chosen.tiny_vae)
    return dataclasses.asdict(dataclasses.replace(chosen, tiny_vae=tiny))


def measure(size: str, flags: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the results after each round, in which each variant generates once. First images are not counted."""
    folder = build(size, flags.out / "models" / size)
    racing = [c for c in CONTENDERS if any(word in c.name for word in flags.only) and possible(c)]
    rows: dict[str, list[dict[str, float]]] = {contender.name: [] for contender in racing}
    with workers(racing, size, folder, flags, together=size == "mini") as start:
        for number in range(flags.rounds):
            for contender in racing:
                print(f"{size}: round {number + 1} of {flags.rounds}: {contender.name}", file=sys.stderr, flush=True)
                with start(contender) as worker:
                    rows[contender.name].append(one(worker, contender, size, flags.out, warm=number == 0))
            yield {"gflop": unet_gflop(folder), "rounds": rows}


def possible(contender: Contender) -> bool:
    """Return whether OpenVINO is installed if needed, and bfloat16 is fast if needed. Otherwise it would take hours."""
    from importlib.util import find_spec

    if contender.dtype == "bfloat16" and not has_bfloat16():
        return False
    return ON_OPENVINO not in contender.choices or find_spec("openvino") is not None


@contextmanager
def workers(
    racing: Sequence[Contender], size: str, folder: Path, flags: argparse.Namespace, *, together: bool
) -> Iterator[Callable[[Contender], AbstractContextManager[Worker]]]:
    """Start all processes at once if memory allows it, else one at a time."""
    running = {contender: Worker(contender, size, folder, flags) for contender in racing} if together else {}

    @contextmanager
    def start(contender: Contender) -> Iterator[Worker]:
        worker = running[contender] if together else Worker(contender, size, folder, flags)
        try:
            yield worker
        finally:
            if not together:
                worker.close()

    try:
        yield start
    finally:
        for worker in running.values():
            worker.close()


def one(worker: Worker, contender: Contender, size: str, out: Path, *, warm: bool) -> dict[str, float]:
    """Return the seconds of an image (measured or computed) and of a call, and the peak memory."""
    slow = size == "published"
    if warm or slow:
        worker.generate(SHORT[0])
    if contender.whole or not slow:
        name = "".join(letter if letter.isalnum() else "-" for letter in contender.name)
        whole = worker.generate(None, out / f"{size}-{name}.png")
    else:
        whole = {}
    result = {"loaded": worker.loaded["load"]}
    if not contender.whole:
        short, longer = (worker.generate(steps) for steps in SHORT)
        for key in ("seconds", "cpu"):
            call = (longer[key] - short[key]) / (SHORT[1] - SHORT[0])
            result[f"call_{key}"] = call
            result[f"computed_{key}"] = short[key] + (OWN_STEPS - SHORT[0]) * call
        result["peak"] = longer["peak"]
    for key in ("seconds", "cpu"):
        if whole:
            result[key] = whole[key]
    return {**result, "peak": whole.get("peak", result.get("peak", 0.0))}


if __name__ == "__main__":
    main()
