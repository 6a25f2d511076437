"""Where a training step's time goes, for the stages of `mini`: its phases, and the operators that cost most.

    python benchmarks/stages.py --world world/world.zip --steps 3

It takes the steps of the loop one after another, in one process and thread, so that phases don't overlap; the loop
itself composes the next batch while it steps.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from blip_diffusion import config as configuration
from blip_diffusion.checkpoint.parts import ASSETS
from blip_diffusion.data.compose import Composer
from blip_diffusion.data.vocabulary import world_sentences
from blip_diffusion.data.world import World
from blip_diffusion.training.ema import Ema
from blip_diffusion.training.loop import attention_on, placed, precision_on
from blip_diffusion.training.method import StepContext
from blip_diffusion.training.optim import adamw, freeze_the_rest
from blip_diffusion.training.run import METHODS, Material, RunConfig

CONFIGS = Path(__file__).parents[1] / "configs" / "mini"
CPU = torch.device("cpu")
STAGES = ("autoencoder", "text_to_image", "representation", "subject", "consistency")


def main() -> None:
    """Prints a table for each stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    world = World.load(flags.world)
    with attention_on(CPU):
        for stage in flags.stages:
            print(f"\n{stage}\n" + measured(stage, world, flags.steps), flush=True)


def measured(stage: str, world: World, steps: int) -> str:
    """Processor time of a step, after one that warms up."""
    start = [] if stage == "autoencoder" else [str(ASSETS / "mini")]
    config = configuration.build(RunConfig, configuration.read(CONFIGS / f"{stage}.toml", [f"model.start={start}"]))
    composer = Composer(world, config.world.compose, batch_size=config.world.batch_size, seed=0)
    method: Any = placed(METHODS[stage](Material(config, world_sentences(world), composer(0)["reference"])), CPU)
    trainable = freeze_the_rest(method, method.parameter_groups())
    optimizer, ema = adamw(method.parameter_groups(), config.train.optim), Ema(trainable, config.train.ema_decay)
    spent: dict[str, float] = defaultdict(float)

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        began = time.process_time()
        yield
        spent[name] += time.process_time() - began

    def step(number: int) -> None:
        with phase("composition"):
            batch = composer(number)
        bf16 = torch.autocast("cpu", torch.bfloat16, enabled=precision_on(CPU, config.train) == "bf16")
        with phase("forward"), bf16:
            context = StepContext(number, torch.Generator().manual_seed(number))
            with torch.no_grad():
                shared = method.share([batch], [context], lambda rows: rows)
            loss = method(batch, StepContext(number, torch.Generator().manual_seed(number), shared))["loss"]
        with phase("backward"):
            loss.backward()
        with phase("clip, optimizer, average"):
            torch.nn.utils.clip_grad_norm_(trainable.values(), config.train.optim.clip or float("inf"), foreach=True)
            optimizer.step()
            optimizer.zero_grad()
            ema.update(number)

    step(0)
    spent.clear()
    for number in range(1, 1 + steps):
        step(number)
    total = sum(spent.values())
    lines = [f"{total / steps:.2f} s a step of {config.world.batch_size} pairs"]
    lines += [f"  {name}: {seconds / steps:.2f} s, {100 * seconds / total:.0f} %" for name, seconds in spent.items()]
    with profile(activities=[ProfilerActivity.CPU]) as found:
        step(steps + 1)
    averages = sorted(found.key_averages(), key=lambda row: -row.self_cpu_time_total)
    whole = sum(row.self_cpu_time_total for row in averages)
    lines += [f"  {100 * row.self_cpu_time_total / whole:4.1f} % {row.key} x {row.count}" for row in averages[:10]]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
