"""Time of a training step by phase and operator, for the stages of `mini` and for tuning, and the share of the CPU's
peak performance.

    python benchmarks/stages.py --dataset world/world.zip --steps 3

Steps run one after another in one process and thread, so that phases don't overlap. (The trainer composites the next
batch during a step.) The operations of matrix products, convolutions and attention are counted; a multiplication and
an addition are two operations.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from machine import peak_gflops
from PIL import Image
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from blip_diffusion import config as configuration
from blip_diffusion.checkpoint.locate import ASSETS
from blip_diffusion.checkpoint.model_folder import assemble, read_parts
from blip_diffusion.data.photos import read_photos
from blip_diffusion.data.synthetic.assets import AssetLibrary
from blip_diffusion.data.synthetic.pair_sampler import PairSampler
from blip_diffusion.data.synthetic.tokenizers import tokenizer_corpus
from blip_diffusion.training.builders import OBJECTIVES, BuildContext
from blip_diffusion.training.config import TrainConfig
from blip_diffusion.training.ema import Ema
from blip_diffusion.training.objective import StepContext
from blip_diffusion.training.optim import OptimConfig, adamw, set_trainable
from blip_diffusion.training.personalize.api import prepare
from blip_diffusion.training.personalize.config import TuneConfig
from blip_diffusion.training.run import accelerate_precision, sdpa_backend, to_training_mode
from blip_diffusion.training.run_config import RunConfig

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs" / "mini"
CPU = torch.device("cpu")
STAGES = ("autoencoder", "text_to_image", "representation", "subject", "consistency", "tuning")


def main() -> None:
    """Print a table for each stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    flags = parser.parse_args()
    peak = peak_gflops(flags.threads)
    world = AssetLibrary.load(flags.dataset)
    with sdpa_backend(CPU):
        for stage in flags.stages:
            stage_run = Stage(*(build_tuning() if stage == "tuning" else build_stage(stage, world)))
            print(f"\n{stage}\n" + measure(stage_run, flags.steps, peak), flush=True)


def build_stage(stage: str, world: AssetLibrary) -> tuple[Any, Callable[[int], Any], TrainConfig]:
    """Return the objective, batches and training configuration of a stage."""
    start = [] if stage == "autoencoder" else [str(ASSETS / "mini")]
    config = configuration.build(RunConfig, configuration.read(CONFIGS / f"{stage}.toml", [f"model.init_from={start}"]))
    sampler = PairSampler(world, config.data.synthetic, batch_size=config.data.batch_size, seed=0)
    objective = OBJECTIVES[stage](BuildContext(config, tokenizer_corpus(world), sampler(0)["reference"]))
    return objective, sampler, config.train


def build_tuning() -> tuple[Any, Callable[[int], Any], TrainConfig]:
    """Return objective, batches and configuration of few-shot tuning, as in `blip-diffusion tune`."""
    folder = ASSETS / "mini"
    photos = read_photos([Image.open(ROOT / "examples" / "dog.png")] * 3, masks="auto")
    job = prepare(assemble(read_parts(folder), folder), photos, "dog", "rex", TuneConfig())
    config = TrainConfig(steps=1, optim=OptimConfig(lr=job.config.learning_rate or 0.0), ema_decay=0.0)
    return job.objective, job.batches, config


class Stage:
    """Training steps of a stage, and the CPU time of each phase."""

    def __init__(self, objective: Any, batches: Callable[[int], Any], config: TrainConfig) -> None:
        self.objective: Any = to_training_mode(objective, CPU)
        self.batches, self.config = batches, config
        self.trainable = set_trainable(self.objective, self.objective.parameter_groups())
        self.optimizer = adamw(self.objective.parameter_groups(), config.optim)
        self.ema = Ema(self.trainable, config.ema_decay) if config.ema_decay else None
        self.precision = accelerate_precision(CPU, config)
        self.spent: dict[str, float] = defaultdict(float)

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        began = time.process_time()
        yield
        self.spent[name] += time.process_time() - began

    def step(self, number: int) -> None:
        """Run one training step, like the trainer."""
        with self._phase("composition"):
            batch = self.batches(number)
        with self._phase("forward"), torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16"):
            context = StepContext(number, torch.Generator().manual_seed(number))
            with torch.no_grad():
                shared = self.objective.gather_step_context([batch], [context], lambda rows: rows)
            loss = self.objective(batch, StepContext(number, torch.Generator().manual_seed(number), shared))["loss"]
        with self._phase("backward"):
            loss.backward()
        with self._phase("clip, optimizer, average"):
            clip = self.config.optim.clip or float("inf")
            torch.nn.utils.clip_grad_norm_(self.trainable.values(), clip, foreach=True)
            self.optimizer.step()
            self.optimizer.zero_grad()
            if self.ema is not None:
                self.ema.update(number)


@dataclass(frozen=True)
class Count:
    """The operations of a step, in GFLOP, and the operators with the most time."""

    gflop: float
    operators: list[str]


def measure(stage_run: Stage, steps: int, peak: dict[str, float]) -> str:
    """Return the CPU time of a step after a warm-up step, and its share of the peak performance."""
    stage_run.step(0)
    stage_run.spent.clear()
    for number in range(1, 1 + steps):
        stage_run.step(number)
    spent = dict(stage_run.spent)
    total = sum(spent.values())
    count = count_operations(stage_run, steps + 1)
    gflops, limit = steps * count.gflop / total, peak["bfloat16" if stage_run.precision == "bf16" else "float32"]
    share = f"{gflops:.0f} GFLOP/s, {gflops / limit:.2f} of {limit:.0f}"
    lines = [f"{total / steps:.2f} s a step of {count.gflop:.0f} GFLOP: {share}"]
    lines += [f"  {name}: {seconds / steps:.2f} s, {100 * seconds / total:.0f} %" for name, seconds in spent.items()]
    return "\n".join(lines + count.operators)


def count_operations(stage_run: Stage, number: int) -> Count:
    """Run two more steps: one with the operation counter, one with the profiler."""
    with FlopCounterMode(display=False) as counter:
        stage_run.step(number)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        stage_run.step(number + 1)
    rows = sorted(profiled.key_averages(), key=lambda row: -row.self_cpu_time_total)
    total_time = sum(row.self_cpu_time_total for row in rows)
    shares = [f"  {100 * row.self_cpu_time_total / total_time:4.1f} % {row.key} x {row.count}" for row in rows[:10]]
    return Count(counter.get_total_flops() / 1e9, shares)


if __name__ == "__main__":
    main()
