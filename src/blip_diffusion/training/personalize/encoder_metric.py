"""Score subject and prompt fidelity with the model's own image encoder."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from blip_diffusion import images
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.prompts import subject_prompt
from blip_diffusion.sampling import prompt_seeds, sample_images
from blip_diffusion.training.personalize.early_stopping import ValidationConfig


class EncoderMetric:
    """An evaluator without other networks: it uses the model's image encoder, and samples of the untuned model.

    Subject score: for each patch of the subject in the photos, the cosine of the most similar patch of the image; the
    mean is scaled to 0 for other members of the category and to 1 for another photo. Text score: the change of image
    features with the prompt, projected on the untuned model's change from the same noise; 0 ignores the prompt.
    """

    def __init__(
        self, model: BlipDiffusion, photos: Tensor, masks: Tensor, category: str, config: ValidationConfig
    ) -> None:
        """`photos` (P, 3, S, S) and `masks` (P, 1, S, S), in [0, 1]. The model must not have been tuned yet."""
        self.model, self.prompt_count = model, len(config.prompts)
        prompts = [subject_prompt(scene, category) for scene in config.prompts] * config.seeds
        with torch.no_grad():
            states = model.text_states(prompts)
            untuned = sample_images(
                model, states, prompt_seeds(config.prompts, config.seeds), steps=config.sampling_steps
            )
        features, others = self._patches(photos), self._patches(untuned)
        self.reference_changes = self._prompt_changes(others)
        self.mean = torch.cat([features, others]).mean(dim=(0, 1))
        self.photos = F.normalize(features - self.mean, dim=-1)  # (P, N, V)
        side = math.isqrt(features.shape[1])
        covered = F.interpolate(masks, (side, side), mode="area").flatten(1).to(features)  # (P, N)
        self.weights = covered / covered.sum(dim=1, keepdim=True).clamp(min=1e-6)
        self.lower_bound = float(self._recall(others).mean())
        self.upper_bound = max(self._mutual(features), self.lower_bound + 0.1)

    def __call__(self, samples: Tensor) -> tuple[float, float]:
        features = self._patches(samples)
        subject = (float(self._recall(features).mean()) - self.lower_bound) / (self.upper_bound - self.lower_bound)
        return subject, float(
            (self._prompt_changes(features) * self.reference_changes).sum() / self.reference_changes.square().sum()
        )

    def _recall(self, features: Tensor) -> Tensor:
        """Return the share of each photo's subject that images with patches (B, N, V) show: (P, B)."""
        patches = F.normalize(features - self.mean, dim=-1)
        rows = [torch.einsum("nv,bmv->bnm", photo, patches).amax(dim=-1) for photo in self.photos]  # (B, N) each
        return (torch.stack(rows) * self.weights[:, None]).sum(dim=-1)

    def _mutual(self, features: Tensor) -> float:
        """Return the mean recall between different photos; 1 for a single photo."""
        count = len(features)
        recall = self._recall(features)
        return float((recall.sum() - recall.trace()) / (count * (count - 1))) if count > 1 else 1.0

    @torch.no_grad()
    def _patches(self, pixels: Tensor) -> Tensor:
        """Return the image encoder's patch features (B, N, V), without a class token."""
        reference, encoder = self.model.reference, self.model.subject_encoder
        pixels = pixels.to(encoder.device).float()
        normalised = images.preprocess(pixels, reference.size, reference.mean, reference.std)
        features: Tensor = encoder.image_encoder(normalised.to(encoder.dtype)).float()
        return features[:, -(math.isqrt(features.shape[1]) ** 2) :]

    def _prompt_changes(self, features: Tensor) -> Tensor:
        """Return mean features of images (B, N, V), minus their mean over the prompts of each seed."""
        by_seed = features.mean(dim=1).view(-1, self.prompt_count, features.shape[-1])
        return by_seed - by_seed.mean(dim=1, keepdim=True)
