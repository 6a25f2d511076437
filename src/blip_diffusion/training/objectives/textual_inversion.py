"""Textual Inversion (Gal et al. 2023): only the embedding of a new word is trained.

Its vectors replace the noun, `a <rex> on the beach`. They are inserted among the word embeddings as subject tokens are,
which equals a new word of the vocabulary without changing the vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from blip_diffusion.checkpoint.weights import save_state
from blip_diffusion.data.photos import PhotoBatch
from blip_diffusion.diffusion.forward_process import Noising
from blip_diffusion.errors import ConfigError
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.prompts import subject_prompt
from blip_diffusion.training.objective import Losses, Objective, ParameterGroup, StepContext
from blip_diffusion.training.objectives.masked_denoising_loss import check_background_weight, masked_denoising_losses

MAX_VECTORS = 32


@dataclass(frozen=True)
class TextualInversionConfig:
    """Number of vectors and the background's weight."""

    num_vectors: int = 1  # of the word
    background_weight: float = 0.1  # of an error outside a photo's mask, relative to 1 inside

    def __post_init__(self) -> None:
        if not 1 <= self.num_vectors <= MAX_VECTORS:
            raise ConfigError(f"num_vectors is {self.num_vectors}: use 1 to {MAX_VECTORS}.")
        check_background_weight(self.background_weight)


class TextualInversion(Objective):
    """Train the embedding vectors of one new word (Gal et al. 2023); all networks are frozen.

    The vectors start as the category's mean word embedding and replace the noun, `a <name> {scene}`.

    Args:
        model: The whole model.
        noising: The forward process.
        name: The new word.
        category: The word that the vectors start from.
        config: Number of vectors and the background's weight.
    """

    def __init__(
        self, model: BlipDiffusion, noising: Noising, name: str, category: str, config: TextualInversionConfig
    ) -> None:
        super().__init__()
        self.model = model
        self.noising = noising
        self.word = f"<{name}>"
        self.config = config
        start = category_embedding(model, category).expand(1, config.num_vectors, -1)  # (1, V, D)
        self.vectors = nn.Parameter(start.clone())

    def forward(self, batch: PhotoBatch, context: StepContext) -> Losses:
        """Return the denoising loss of the photos."""
        states = self.states(batch.get("scenes", [""]))
        return masked_denoising_losses(
            self.model, self.noising, batch, states, context, background_weight=self.config.background_weight
        )

    def states(self, scenes: Sequence[str]) -> Tensor:
        """Encode `a <word> {scene}` to text states (B, L, D)."""
        prompts = [subject_prompt(scene, "") for scene in scenes]
        return self.model.text_states(prompts, self.vectors.expand(len(prompts), -1, -1))

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the word's vectors."""
        return [ParameterGroup("word", [self.vectors], 1.0, weight_decay=0.0)]

    def export(self, folder: Path) -> None:
        """Write `learned_embeds.safetensors`, which `load_textual_inversion` of any Stable Diffusion pipeline reads."""
        save_state({self.word: self.vectors.detach()[0]}, folder / "learned_embeds.safetensors")


def category_embedding(model: BlipDiffusion, category: str) -> Tensor:
    """Return the mean word embedding (1, 1, D) of a category."""
    ids = model.tokenizer(category, add_special_tokens=False, return_tensors="pt").input_ids
    table = model.text_encoder.get_input_embeddings()
    with torch.no_grad():
        embedded: Tensor = table(ids.to(table.weight.device)).float()
    return embedded.mean(dim=1, keepdim=True)
