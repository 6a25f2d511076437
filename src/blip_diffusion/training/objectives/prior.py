"""The prior of subjects: unCLIP's diffusion prior (Ramesh et al. 2022, section 2.2), for subject tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from blip_diffusion.checkpoint.model_folder import save_model
from blip_diffusion.data.batches import SubjectBatch
from blip_diffusion.diffusion.forward_process import Noising, denoising_loss
from blip_diffusion.errors import ConfigError
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.modules.subject_prior import PRIOR, SubjectPrior
from blip_diffusion.sampling import category_states, sample_subject_tokens
from blip_diffusion.training.objective import Losses, Objective, ParameterGroup, StepContext
from blip_diffusion.training.sample_callback import sample_with_same_noise


@dataclass(frozen=True)
class PriorConfig:
    """Size of the prior, caption dropout and loss weights."""

    layers: int = 4
    heads: int = 4
    category_drop: float = 0.1  # share of empty categories, for guidance (Ho & Salimans 2022)
    noise_samples_per_subject: int = 4  # noised copies of each subject, whose encoding is slower than denoising
    min_snr: float | None = 5.0  # γ of the loss weights; none: the simple loss

    def __post_init__(self) -> None:
        if not 0 <= self.category_drop < 1:
            raise ConfigError(f"prior.category_drop is {self.category_drop}: use 0 or more, below 1.")
        for name in ("layers", "heads", "noise_samples_per_subject"):
            if getattr(self, name) < 1:
                raise ConfigError(f"prior.{name} is {getattr(self, name)}: use 1 or more.")


class Prior(Objective):
    """Train a prior that generates subject tokens from a category; the model is frozen.

    loss = E_{s, ε, t} w(t) |target - f(s_t, t, text(category))|², with s the standardised subject tokens of a
    reference.

    Args:
        model: The whole model.
        noising: The model's forward process.
        config: Size, dropout and weights.
        references: (N, 3, S, S) in [0, 1]; mean and standard deviation of their subject tokens standardise the prior's.
        categories: The N categories of the references.
    """

    def __init__(
        self,
        model: BlipDiffusion,
        noising: Noising,
        config: PriorConfig,
        references: Tensor,
        categories: Sequence[str],
    ) -> None:
        super().__init__()
        self.model, self.noising, self.config = model.requires_grad_(False).eval(), noising, config
        tokens = subject_tokens(model, references, categories)
        self.prior = SubjectPrior(tokens.shape[1], tokens.shape[2], config.layers, config.heads)
        self.prior.fit_statistics(tokens)

    def train(self, mode: bool = True) -> "Prior":
        """Set the prior's mode; the model stays in eval mode."""
        super().train(mode)
        self.model.eval()
        return self

    def forward(self, batch: SubjectBatch, context: StepContext) -> Losses:
        """Return the denoising loss of the references' subject tokens."""
        tokens = self.prior.standardized(subject_tokens(self.model, batch["reference"], batch["category"])).float()
        text = category_states(self.model, self._with_dropout(batch["category"], context.rng))
        copies = self.config.noise_samples_per_subject
        text = text.repeat(copies, 1, 1)

        def denoise(noised: Tensor, timesteps: Tensor) -> Tensor:
            return self.prior(noised[..., 0], timesteps, text)[..., None]

        loss = denoising_loss(
            denoise, tokens.repeat(copies, 1, 1)[..., None], self.noising, context.rng, gamma=self.config.min_snr
        )
        return {"denoising": loss, "loss": loss}

    def _with_dropout(self, categories: Sequence[str], rng: torch.Generator) -> list[str]:
        """Return the categories; in training mode, some are replaced by "" at random."""
        drop = self.config.category_drop if self.training else 0.0
        kept = (torch.rand(len(categories), generator=rng, device=rng.device) >= drop).tolist()
        return [category if keep else "" for category, keep in zip(categories, kept, strict=True)]

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the prior's parameters."""
        return [ParameterGroup("prior", list(self.prior.parameters()), 1.0)]

    def sample_images(self, batch: SubjectBatch) -> list[Tensor]:
        """Return references, and images of generated subjects of the same categories."""
        generators = [torch.Generator().manual_seed(seed) for seed in range(len(batch["category"]))]
        tokens = sample_subject_tokens(self.model, self.prior, batch["category"], generators)
        return [
            batch["reference"],
            sample_with_same_noise(self.model, self.model.text_states(batch["caption"], tokens)),
        ]

    def export(self, folder: Path) -> None:
        """Write the model, which is unchanged, with the prior in its folder."""
        save_model(self.model, folder)
        self.prior.save_pretrained(folder / PRIOR)


@torch.no_grad()
def subject_tokens(model: BlipDiffusion, references: Tensor, categories: Sequence[str]) -> Tensor:
    """Return the subject tokens (B, Q, D) of references (B, 3, S, S), without gradient."""
    return model.subject_tokens(references, categories).float()
