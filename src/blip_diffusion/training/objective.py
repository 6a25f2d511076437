"""Objectives: the interface between a loss and the trainer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Losses = dict[str, Tensor]
"""Scalars by name. `loss` is minimised; the others are only logged."""

Gather = Callable[[Tensor], Tensor]
"""Gather a tensor of the whole step from all processes, without gradient, in the order of `StepContext.position`.

Dimension 0 holds this process's micro-batches one after another, with the same number of rows each; in the result it
holds those of all processes.
"""


@dataclass(frozen=True)
class StepContext:
    """The step, random generator and shared tensors of a loss computation."""

    step: int  # optimizer steps taken so far
    rng: torch.Generator  # on the training device; a pure function of the seed and the micro-batch's index
    shared: Any = None  # what `Objective.gather_step_context` returned for this step
    position: int = 0  # which micro-batch of the step this is, over accumulation and processes


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share a learning rate; `lr_scale` multiplies the schedule."""

    name: str
    parameters: Sequence[nn.Parameter]
    lr_scale: float
    weight_decay: float | None = None  # None: the configuration's


class Objective(nn.Module):
    """Base class of objectives: a module whose `forward(batch, context)` returns the losses of one micro-batch.

    Subclasses implement `forward`, `parameter_groups` and `export`. An objective never loops, logs or saves
    checkpoints: the trainer does.

    Example:
        >>> class Regression(Objective):
        ...     def __init__(self) -> None:
        ...         super().__init__()
        ...         self.layer = nn.Linear(3, 1)
        ...
        ...     def forward(self, batch, context):
        ...         return {"loss": (self.layer(batch["x"]) - batch["y"]).square().mean()}
        ...
        ...     def parameter_groups(self):
        ...         return [ParameterGroup("layer", list(self.layer.parameters()), 1.0)]
        ...
        ...     def export(self, folder):
        ...         torch.save(self.layer.state_dict(), folder / "layer.pt")
    """

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the trainable parameters; all others are frozen."""
        raise NotImplementedError

    def export(self, folder: Path) -> None:
        """Write the result, in the published folder layout."""
        raise NotImplementedError

    def gather_step_context(self, batches: Sequence[Any], contexts: Sequence[StepContext], gather: Gather) -> Any:
        """Compute, without gradient, the tensors that the micro-batches of a step share, such as stage 1's negatives.

        Args:
            batches: The micro-batches of this process.
            contexts: Their contexts.
            gather: Gathers a tensor over all processes.

        Returns:
            The value of `StepContext.shared`; `None`, the default, if the samples are independent.
        """
        return None

    def comparison_losses(self, batch: Any, context: StepContext) -> Losses:
        """Return held-out losses under wrong or missing conditions of the objective's own; empty by default.

        They are comparable with the losses of `forward` for the same batch and generator.
        """
        return {}

    def sample_images(self, batch: Any) -> list[Tensor]:
        """Return columns of images (B, 3, H, W) in [0, 1] for inspection; empty by default."""
        return []
