"""What a training method is: a module whose forward is its loss, and an answer to what moves and what is kept."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

Losses = dict[str, Tensor]
"""Scalars by name. `loss` is what is minimised; the others are logged beside it."""

Gather = Callable[[Tensor], Tensor]
"""Joins a tensor of the whole step over the processes, without gradient, in the order of `StepContext.position`.

Dimension 0 holds this process's micro-batches one after another, equally many rows of each; so it is in the result.
"""


@dataclass(frozen=True)
class StepContext:
    """What a loss may know about the moment it is computed in."""

    step: int  # optimizer steps taken so far
    rng: torch.Generator  # on the training device; a pure function of the seed and the micro-batch's index
    shared: Any = None  # what `Method.share` returned for this step
    position: int = 0  # which micro-batch of the step this is, over accumulation and processes


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share a learning rate; `lr` multiplies the schedule."""

    name: str
    parameters: Sequence[nn.Parameter]
    lr: float
    weight_decay: float | None = None  # the configuration's where it is None


@runtime_checkable
class Method(Protocol):
    """An objective, an `nn.Module` whose `forward(batch, context)` is the loss."""

    def __call__(self, batch: Any, context: StepContext) -> Losses:
        """The losses of one micro-batch."""

    def parameter_groups(self) -> list[ParameterGroup]:
        """What moves. All else is frozen."""

    def share(self, batches: Sequence[Any], contexts: Sequence[StepContext], gather: Gather) -> Any:
        """What the micro-batches of one step know of each other (stage 1's negatives), computed without gradient.

        `batches` are this process's micro-batches. `None` where a method's samples are independent.
        """

    def show(self, batch: Any) -> list[Tensor]:
        """What a person should look at: columns of pictures (B, 3, H, W) in [0, 1]; empty where there is nothing."""

    def export(self, folder: Path) -> None:
        """Writes what is kept, in the published folder layout."""
