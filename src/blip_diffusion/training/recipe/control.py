"""Structure control on packed rows: the packer of hints, and the objective."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from blip_diffusion.checkpoint.components import save_diffusers
from blip_diffusion.data.batches import SubjectBatch
from blip_diffusion.diffusion.forward_process import Noising, denoising_error
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.training.objective import Losses, Objective, ParameterGroup, StepContext
from blip_diffusion.training.objectives.control import (
    GEOMETRIC,
    ControlConfig,
    Hint,
    control_denoiser,
    hint_of,
    new_network,
    with_default_frames,
    with_mask_frames,
)
from blip_diffusion.training.objectives.subject import SubjectConfig
from blip_diffusion.training.recipe.cuda_graph import autocast
from blip_diffusion.training.recipe.objectives import PackedSubject
from blip_diffusion.training.recipe.packing import Packer, Rows, to_bytes, to_pixels
from blip_diffusion.training.recipe.phases import FULL, Source, random_rows
from blip_diffusion.training.recipe.timed_loop import NextRows

COLUMNS = ("reference", "frames", "prompt", "category", "category_mask")
HINT = "hint"
"""The hint's column in a batch; the pool has a column for each kind, such as `hint_canny`."""

FRAMES = "mask_frames"
"""The column of the frames of the subjects' masks; `frames` are those of the composites."""


@dataclass(frozen=True)
class HintPacker(Packer):
    """Convert batches to the rows of structure control: conditions, targets, and the chosen kinds of hints."""

    hints: Sequence[Hint]

    @classmethod
    def over(cls, packer: Packer, hints: Sequence[Hint]) -> "HintPacker":
        """Return a packer that adds hints to another packer's columns."""
        return cls(**vars(packer), hints=tuple(hints))

    def __call__(self, batch: SubjectBatch) -> Rows:
        rows = super().__call__(batch)
        columns = {name: rows[name] for name in (*COLUMNS, "target")}
        kinds: set[Hint] = {*self.hints}
        if kinds & {*GEOMETRIC}:
            kinds.add("mask")  # for the metrics
        hints = {kind: hint_of(kind, batch) for kind in sorted(kinds)}
        columns[FRAMES] = with_mask_frames(batch["frames"], batch["target_alpha"])
        return columns | {f"{HINT}_{kind}": to_bytes(hint) for kind, hint in hints.items()}


class PackedControl(Objective):
    """`StructureControl` on rows with latents, hints, noise, timesteps and dropped prompts."""

    def __init__(self, model: BlipDiffusion, noising: Noising, config: ControlConfig) -> None:
        super().__init__()
        self.config, self.drops = config, _drops(config)
        self.subject = PackedSubject(model, noising, None, self.drops)  # computes the text states
        self.network = new_network(model, config)

    @property
    def model(self) -> BlipDiffusion:
        """The frozen model."""
        return self.subject.model

    @property
    def noising(self) -> Noising:
        """The forward process, on the model's device."""
        return self.subject.noising

    def train(self, mode: bool = True) -> "PackedControl":
        """Put only the new network into training mode."""
        super().train(mode)
        self.subject.eval()
        return self

    def forward(self, rows: Rows, context: StepContext) -> Losses:
        """Return the denoising loss of the targets."""
        with torch.no_grad():
            states = self.subject.states_of(rows)
        copies = len(rows["noise"]) // len(rows[FULL])
        loss = denoising_error(
            control_denoiser(self.model, self.network, states.repeat(copies, 1, 1), to_pixels(rows[HINT])),
            rows[FULL].float().repeat(copies, 1, 1, 1),
            rows["noise"],
            rows["timesteps"],
            self.noising,
            gamma=self.config.min_snr,
        )
        return {"denoising": loss, "loss": loss}

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the parameters of the new network."""
        return [ParameterGroup("control", list(self.network.parameters()), 1.0)]

    def export(self, folder: Path) -> None:
        """Write the new network in half precision, in diffusers' format."""
        save_diffusers(self.network, folder, dtype=torch.float16)


def _drops(config: ControlConfig) -> SubjectConfig:
    """Return the settings of `random_rows`."""
    names = ("subject_drop", "prompt_drop", "noise_samples_per_pair", "timestep_shift")
    return SubjectConfig(**{name: getattr(config, name) for name in names})


def control_rows(source: Source, objective: PackedControl) -> NextRows:
    """Return a function that samples pairs with latents, hints, noise, timesteps and dropped prompts."""
    column = f"{HINT}_{objective.config.hint}"

    def rows(_elapsed: float, rng: torch.Generator) -> Rows:
        batch = source.take(source.sizes.pairs, (*COLUMNS, FULL, FRAMES, column), rng)
        batch[HINT] = batch.pop(column)
        batch["frames"] = with_default_frames(batch.pop(FRAMES), objective.config.default_frames, rng)
        return batch | random_rows(batch[FULL], objective.drops, objective.noising, rng)

    return rows


@torch.no_grad()
def latent_column(model: BlipDiffusion, rows: Rows) -> Rows:
    """Return the latents of the targets."""
    pixels = to_pixels(rows["target"])
    with autocast(pixels.device):
        return {FULL: model.latents.encode(pixels).to(torch.bfloat16)}
