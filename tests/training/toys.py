"""Tiny objectives with reproducible data. Tests also launch this module as a program and kill it.

`python toys.py '[{"folder": ..., "method": ..., "config": {...}}, ...]'` is one `fit` after another.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from blip_diffusion.config import build, to_toml
from blip_diffusion.training.config import TrainConfig
from blip_diffusion.training.objective import Gather, Losses, Objective, ParameterGroup, StepContext
from blip_diffusion.training.run import Result
from blip_diffusion.training.trainer import fit

ROWS, WIDTH = 4, 5


class Regression(Objective):
    """A perceptron with dropout and noise, so that chance takes part; and a frozen part in another precision."""

    def __init__(self, poison: int = -1, where: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(7)
            self.net = nn.Sequential(nn.Linear(WIDTH, 8), nn.GELU(), nn.Dropout(0.2), nn.Linear(8, 1))
            self.frozen = nn.Linear(WIDTH, 1).to(torch.float64)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.poison = (poison, where)

    def forward(self, batch: Any, context: StepContext) -> Losses:
        self.seen += len(batch["x"])
        noise = torch.randn(batch["x"].shape, generator=context.rng, device=batch["x"].device)
        expected = self.frozen(batch["x"].double()).float()
        loss = (self.net(batch["x"] + 0.1 * noise) - expected).float().square().mean()
        if (context.step, context.position) == self.poison:
            loss = loss * float("nan")
        return {"loss": loss, "noise": noise.square().mean()}

    def parameter_groups(self) -> list[ParameterGroup]:
        first, last = self.net[0], self.net[3]
        return [ParameterGroup("first", [*first.parameters()], 1.0), ParameterGroup("last", [*last.parameters()], 0.5)]

    def export(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self.net.state_dict(), folder / "net.pt")


class Contrast(Objective):
    """InfoNCE of two linear towers over the whole step, negatives from every micro-batch and process."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(8)
            self.left, self.right = nn.Linear(WIDTH, 3), nn.Linear(WIDTH, 3, bias=False)

    def forward(self, batch: Any, context: StepContext) -> Losses:
        own_rows = slice(context.position * ROWS, (context.position + 1) * ROWS)
        left, right = self.left(batch["x"]), self.right(batch["y"])
        all_right = torch.cat([context.shared[: own_rows.start], right, context.shared[own_rows.stop :]])
        labels = torch.arange(own_rows.start, own_rows.stop, device=left.device)
        # rows of this micro-batch must be at `position`, or the labels are wrong
        assert torch.allclose(context.shared[own_rows], right.detach(), atol=1e-6)
        return {"loss": nn.functional.cross_entropy(left @ all_right.T, labels)}

    def parameter_groups(self) -> list[ParameterGroup]:
        return [ParameterGroup("towers", list(self.parameters()), 1.0, weight_decay=0.1)]

    def gather_step_context(self, batches: Sequence[Any], contexts: Sequence[StepContext], gather: Gather) -> Tensor:
        assert not torch.is_grad_enabled()
        return gather(torch.cat([self.right(batch["y"]) for batch in batches]))

    def export(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self.state_dict(), folder / "net.pt")


OBJECTIVES = {"regression": Regression, "contrast": Contrast}


def batches(index: int) -> dict[str, Any]:
    rng = torch.Generator().manual_seed(1000 + index)
    x = torch.randn(ROWS, WIDTH, generator=rng)
    return {"x": x, "y": x.roll(1, 1) + 0.1 * torch.randn(ROWS, WIDTH, generator=rng), "words": ["a", "b", "c", "d"]}


def train(spec: dict[str, Any]) -> Result:
    """Run `fit`. `spec["signals"]` maps the index of a batch to a signal that is sent when it is requested."""
    config = build(TrainConfig, spec.get("config", {}))
    signals = {int(index): number for index, number in spec.get("signals", {}).items()}

    def watched(index: int) -> dict[str, Any]:
        if index in signals:
            os.kill(os.getpid(), signals.pop(index))
        return batches(index)

    objective = OBJECTIVES[spec.get("objective", "regression")](**spec.get("arguments", {}))
    resume, text = spec.get("resume", False), to_toml(config)
    return fit(objective, watched, config, folder=Path(spec["folder"]), resume=resume, config_text=text)


def main() -> None:
    for spec in json.loads(sys.argv[1]):
        result = train(spec)
        print(f"stopped: {result.stopped} at {result.step}", flush=True)


if __name__ == "__main__":
    main()
