"""The objectives of the recipe's phases, which compute the losses of `training.objectives` on packed rows."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blip_diffusion.checkpoint.components import save_subject_finder
from blip_diffusion.diffusion.forward_process import Noising, denoising_error
from blip_diffusion.model import BlipDiffusion, ReferenceConfig
from blip_diffusion.modules.heads import SubjectFinder, reconstruction_loss
from blip_diffusion.modules.placed_unet import append_codes, token_codes
from blip_diffusion.prompts import insert_position, prompt_ids
from blip_diffusion.training.objective import Losses, Objective, ParameterGroup, StepContext
from blip_diffusion.training.objectives.autoencoder import Autoencoder
from blip_diffusion.training.objectives.consistency import Consistency, ConsistencyConfig
from blip_diffusion.training.objectives.masked_denoising_loss import subject_importance
from blip_diffusion.training.objectives.representation import Representation
from blip_diffusion.training.objectives.subject import (
    SubjectConfig,
    export_subject_model,
    subject_losses,
    subject_parameter_groups,
)
from blip_diffusion.training.recipe.config import FinderConfig
from blip_diffusion.training.recipe.packing import Rows, to_pixels, words_of

MULTIMODAL_ROWS = 192  # rows per step for ITC, ITM and ITG


class Pixels(nn.Module):
    """Bytes of references to the image encoder's normalised input; the constants are buffers on the device."""

    def __init__(self, reference: ReferenceConfig) -> None:
        super().__init__()
        self.size = reference.size
        self.register_buffer("mean", torch.tensor(reference.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(reference.std).view(1, 3, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def forward(self, rows: Tensor) -> Tensor:
        """Convert bytes (B, 3, H, W) to normalised pixels (B, 3, S, S)."""
        pixels = to_pixels(rows)
        if pixels.shape[-1] != self.size:
            pixels = F.interpolate(pixels, (self.size, self.size), mode="bicubic", antialias=True).clamp(0, 1)
        return (pixels - self.mean) / self.std


class PackedAutoencoder(Autoencoder):
    """`Autoencoder` on rows with crops and noise: without random numbers, its step can be a CUDA graph."""

    def forward(self, batch: Any, context: StepContext) -> Losses:
        """Return the losses on one crop of every target and reference."""
        return self.losses(to_pixels(batch["pixels"]), batch["noise"], batch["disturbance"], context.step)


class PackedRepresentation(Objective):
    """`Representation` on rows, and a subject finder trained on the same features of the frozen tower."""

    def __init__(self, representation: Representation, finder: SubjectFinder, config: FinderConfig) -> None:
        super().__init__()
        self.representation, self.finder, self.config = representation, finder, config
        self.pixels = Pixels(representation.reference)

    def forward(self, rows: Rows, context: StepContext) -> Losses:
        """Return reconstruction and finder losses, and every `multimodal_every` steps ITC, ITM and ITG."""
        core, encoder = self.representation, self.representation.encoder.image_encoder
        count = max(1, int(len(rows["target"]) * self.config.batch_fraction))
        both = encoder.features(self.pixels(torch.cat([rows["reference"], rows["target"][:count]])))
        features, target_features = both[:-count], both[-count:]
        normed = encoder.norm(features)
        reconstruction = core.reconstruct(normed, words_of(rows, "category"))
        losses = {"reconstruction": reconstruction_loss(reconstruction, to_pixels(rows["object_crop"]))}
        if context.step % core.config.multimodal_every == 0:
            losses |= self._multimodal(normed, features, rows, context)
        losses["finder"] = finder_loss(self.finder(target_features), rows["mask"][:count])
        losses["loss"] = core.weighted(losses) + self.config.weight * losses["finder"]
        return losses

    def _multimodal(self, normed: Tensor, features: Tensor, rows: Rows, context: StepContext) -> Losses:
        part = {name: value[:MULTIMODAL_ROWS] for name, value in rows.items()}
        words = words_of(part, "caption")
        normed, features = normed[:MULTIMODAL_ROWS], features[:MULTIMODAL_ROWS]
        return self.representation.multimodal_losses(normed, features, words, part["identity"], context)

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the Q-Former with its heads, and the finder."""
        finder = ParameterGroup("finder", list(self.finder.parameters()), 1.0)
        return [*self.representation.parameter_groups(), finder]

    def export(self, folder: Path) -> None:
        """Write the subject encoder, the heads and the finder."""
        self.representation.export(folder)
        save_subject_finder(self.finder, folder / "subject_finder")


def finder_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Return the binary cross-entropy of mask logits (B, 1, M, M) and the target mask in bytes."""
    return F.binary_cross_entropy_with_logits(logits.float(), to_pixels(mask))


class PackedSubject(Objective):
    """`SubjectRepresentation` on rows with latents, noise, timesteps and dropped prompts.

    Without random numbers, its forward and backward pass can be captured as one CUDA graph. Without a reconstruction
    head, its loss is the denoising loss alone.
    """

    def __init__(
        self, model: BlipDiffusion, noising: Noising, reconstruction: nn.Module | None, config: SubjectConfig
    ) -> None:
        super().__init__()
        self.model, self.reconstruction, self.config = model, reconstruction, config
        self.pixels = Pixels(model.reference)
        self.prediction = noising.prediction
        self.register_buffer("alphas_cumprod", noising.alphas_cumprod, persistent=False)
        self.alphas_cumprod: Tensor
        self.insert_at = insert_position(model.tokenizer)
        self.padding = int(model.tokenizer.pad_token_id)
        queries = model.subject_encoder.qformer.config.queries
        empty = prompt_ids(model.tokenizer, [""], model.text_length - queries)
        self.register_buffer("empty_prompt", empty, persistent=False)
        self.empty_prompt: Tensor

    @property
    def noising(self) -> Noising:
        """The forward process, with its table on this device."""
        return Noising(self.alphas_cumprod, self.prediction)

    def forward(self, rows: Rows, context: StepContext) -> Losses:
        """Return the denoising loss of the targets, and the reconstruction loss of the subject tokens."""
        tokens = self.subject_tokens(rows)
        states = self.text_states(tokens, rows)
        copies = len(rows["noise"]) // len(rows["latents"])
        latents = rows["latents"].float()
        weights = subject_importance(to_pixels(rows["mask"]), latents, self.config.subject_weight)
        loss = denoising_error(
            self.model.denoiser(states.repeat(copies, 1, 1)),
            latents.repeat(copies, 1, 1, 1),
            rows["noise"],
            rows["timesteps"],
            self.noising,
            gamma=self.config.min_snr,
            importance=weights.repeat(copies, 1, 1, 1),
        )
        return subject_losses(loss, self.reconstruction, tokens, to_pixels(rows["object_crop"]), self.config)

    def states_of(self, rows: Rows) -> Tensor:
        """Return the text states (B, L, D + P) of references and prompts."""
        return self.text_states(self.subject_tokens(rows), rows)

    def subject_tokens(self, rows: Rows) -> Tensor:
        """Return the subject tokens (B, Q, D) of the references."""
        tokens: Tensor = self.model.subject_encoder(self.pixels(rows["reference"]), words_of(rows, "category"))
        return tokens

    def text_states(self, tokens: Tensor, rows: Rows) -> Tensor:
        """Return text states (B, L, D + P); `empty` rows have no words and no subject, `bare` rows no subject."""
        text, at, count = self.model.text_encoder, self.insert_at, tokens.shape[1]
        ids = torch.where(rows["empty"][:, None], self.empty_prompt, rows["prompt"].long())
        words = text.embeddings.token_embedding(ids)
        plain = text.embeddings.token_embedding(F.pad(ids, (0, count), value=self.padding))
        dropped = (rows["bare"] | rows["empty"])[:, None, None]
        with_subject = torch.cat([words[:, :at], tokens.to(words.dtype), words[:, at:]], dim=1)
        states: Tensor = text.encode_embedded(torch.where(dropped, plain, with_subject))
        if not self.model.place_width:
            return states
        codes = token_codes(rows["frames"], count, self.model.place_width) * ~dropped
        return append_codes(states, codes, at)

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the parameters that are not frozen."""
        return subject_parameter_groups(self.model, self.reconstruction, self.config)

    def export(self, folder: Path) -> None:
        """Write the whole model and the reconstruction head."""
        export_subject_model(self.model, self.reconstruction, folder)


class PackedConsistency(Objective):
    """`Consistency` on rows with noise. Only the U-Net's LoRA is trained."""

    def __init__(self, subject: PackedSubject, config: ConsistencyConfig) -> None:
        super().__init__()
        self.subject = subject
        self.core = Consistency(subject.model, subject.noising, config)

    def forward(self, rows: Rows, context: StepContext) -> Losses:
        """Return the losses of the student's predictions against the ends of the teacher's paths."""
        return self.core.trajectory_losses(*self._states(rows), rows["noise"])

    def distance(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return the squared error of the student's prediction from pure noise, and the variance of its target."""
        prediction, end = self.core.first_answer(*self._states(rows), rows["noise"])
        return (prediction - end).square().sum(), (end - end.mean()).square().sum()

    @torch.no_grad()
    def _states(self, rows: Rows) -> tuple[Tensor, Tensor]:
        first = {name: value[:1] for name, value in rows.items()}
        empty = self.subject.states_of(first | {"empty": torch.ones_like(first["empty"])})
        return self.subject.states_of(rows), empty

    def train(self, mode: bool = True) -> "PackedConsistency":
        """Put only the U-Net into training mode."""
        super().train(mode)
        self.core.train(mode)
        return self

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the LoRA's parameters."""
        return self.core.parameter_groups()

    def export(self, folder: Path) -> None:
        """Write the unchanged model and the LoRA."""
        self.core.export(folder)
