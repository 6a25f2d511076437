"""Where a training step's time goes, for the stages of `mini` and for tuning it: phases, operators, and the share of
what the machine's processor could do.

    python benchmarks/stages.py --dataset world/world.zip --steps 3

It takes the steps of the loop one after another, in one process and thread, so that phases don't overlap; the loop
itself composes the next batch while it steps. Operations are counted, not estimated: those of matrix products,
convolutions and attention, two a multiplication and addition.
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
from machine import ceiling
from PIL import Image
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from blip_diffusion import config as configuration
from blip_diffusion.checkpoint.components import ASSETS
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
    """Prints a table for each stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    flags = parser.parse_args()
    able = ceiling(flags.threads)
    world = AssetLibrary.load(flags.dataset)
    with sdpa_backend(CPU):
        for stage in flags.stages:
            stage_run = Stage(*(tuning() if stage == "tuning" else of_a_stage(stage, world)))
            print(f"\n{stage}\n" + measured(stage_run, flags.steps, able), flush=True)


def of_a_stage(stage: str, world: AssetLibrary) -> tuple[Any, Callable[[int], Any], TrainConfig]:
    """Its method, its batches, and how it is trained."""
    start = [] if stage == "autoencoder" else [str(ASSETS / "mini")]
    config = configuration.build(RunConfig, configuration.read(CONFIGS / f"{stage}.toml", [f"model.init_from={start}"]))
    sampler = PairSampler(world, config.data.synthetic, batch_size=config.data.batch_size, seed=0)
    method = OBJECTIVES[stage](BuildContext(config, tokenizer_corpus(world), sampler(0)["reference"]))
    return method, sampler, config.train


def tuning() -> tuple[Any, Callable[[int], Any], TrainConfig]:
    """Few-shot tuning of a subject, as `blip-diffusion tune` does it."""
    folder = ASSETS / "mini"
    photos = read_photos([Image.open(ROOT / "examples" / "dog.png")] * 3, masks="auto")
    job = prepare(assemble(read_parts(folder), folder), photos, "dog", "rex", TuneConfig())
    config = TrainConfig(steps=1, optim=OptimConfig(lr=job.config.learning_rate or 0.0), ema_decay=0.0)
    return job.objective, job.batches, config


class Stage:
    """One stage's steps, and what each phase of them takes of the processor's time."""

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
        """One, as the loop takes it."""
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
    """What a step computes, and who computes it."""

    gflop: float
    operators: list[str]


def measured(stage_run: Stage, steps: int, able: dict[str, float]) -> str:
    """Processor time of a step, after one that warms up, and what that is of the ceiling."""
    stage_run.step(0)
    stage_run.spent.clear()
    for number in range(1, 1 + steps):
        stage_run.step(number)
    spent = dict(stage_run.spent)
    total = sum(spent.values())
    count = counted(stage_run, steps + 1)
    pace, most = steps * count.gflop / total, able["bfloat16" if stage_run.precision == "bf16" else "float32"]
    share = f"{pace:.0f} GFLOP/s, {pace / most:.2f} of {most:.0f}"
    lines = [f"{total / steps:.2f} s a step of {count.gflop:.0f} GFLOP: {share}"]
    lines += [f"  {name}: {seconds / steps:.2f} s, {100 * seconds / total:.0f} %" for name, seconds in spent.items()]
    return "\n".join(lines + count.operators)


def counted(stage_run: Stage, number: int) -> Count:
    """Two more steps: one under the counter of operations, one under the profiler."""
    with FlopCounterMode(display=False) as counter:
        stage_run.step(number)
    with profile(activities=[ProfilerActivity.CPU]) as found:
        stage_run.step(number + 1)
    rows = sorted(found.key_averages(), key=lambda row: -row.self_cpu_time_total)
    whole_time = sum(row.self_cpu_time_total for row in rows)
    shares = [f"  {100 * row.self_cpu_time_total / whole_time:4.1f} % {row.key} x {row.count}" for row in rows[:10]]
    return Count(counter.get_total_flops() / 1e9, shares)


if __name__ == "__main__":
    main()
