"""The autoencoder of latent diffusion (Rombach et al. 2022, section 3.1 and appendix G).

An absolute and a perceptual error, a small KL term of the posterior, and, from a later step on, a patch discriminator.
The network is convolutional, so it is trained on crops, which cost less than whole images.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch.func import functional_call

from blip_diffusion.checkpoint.components import save_diffusers
from blip_diffusion.data.batches import SubjectBatch
from blip_diffusion.errors import ConfigError
from blip_diffusion.modules.discriminator import PatchDiscriminator, hinge
from blip_diffusion.training.objective import Losses, Objective, ParameterGroup, StepContext


@dataclass(frozen=True)
class AutoencoderConfig:
    """Weights of the loss terms, crop size, and trainable parts."""

    crop: int = 64  # side of the random crops, in pixels
    chroma_weight: float = 0.0  # of the error in red-green and blue-yellow, to which the RGB error gives little weight
    perceptual: float = 0.2
    lpips: Path | None = None  # folder with the weights of LPIPS; none: EfficientNet-Lite0's early features
    kl: float = 1e-5  # of the KL divergence per latent number
    adversarial: float = 0.0  # 0 builds no discriminator
    adversarial_start: int = 0  # step from which the generator's adversarial loss counts
    lr_scale: float = 1.0  # times the schedule
    train_encoder: bool = True  # False trains the decoder only, for a codec whose latents are in use
    latent_noise: float = 0.0  # largest noise added to the latents, in their standard deviations

    def __post_init__(self) -> None:
        if self.crop % 16 or self.crop < 16:
            raise ConfigError(f"autoencoder.crop is {self.crop}: use a multiple of 16.")
        if self.latent_noise < 0:
            raise ConfigError(f"autoencoder.latent_noise is {self.latent_noise}: use 0 or more.")


class Autoencoder(Objective):
    """Train a diffusers `AutoencoderKL` (Rombach et al. 2022, equation 25).

    loss = |x - x̂|_1 + chroma_weight · |c(x) - c(x̂)|_1 + perceptual · d(x, x̂) + kl · KL(q(z|x) ‖ N(0, I)) / dim z
    + adversarial · (-D(x̂)) + hinge loss of D, where c are the red-green and blue-yellow differences, d is LPIPS or a
    perceptual distance, and D a patch discriminator, which counts from step `adversarial_start` on.

    Args:
        vae: The autoencoder.
        perceptual: A distance of two batches of images (B, 3, H, W) in [0, 1]; `None`: no such term.
        config: The weights.
    """

    def __init__(self, vae: Any, perceptual: nn.Module | None, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.vae = vae.requires_grad_(True)
        if not config.train_encoder:
            self.vae.encoder.requires_grad_(False)
            self.vae.quant_conv.requires_grad_(False)
        self.perceptual = perceptual
        self.discriminator = PatchDiscriminator() if config.adversarial else None
        self.register_buffer("latent_variance", torch.ones(()))
        self.register_buffer("measured", torch.zeros(()))  # number of steps in the variance
        self.latent_variance: Tensor
        self.measured: Tensor

    def forward(self, batch: SubjectBatch, context: StepContext) -> Losses:
        """Return the losses on one crop of every target and reference."""
        target = random_crops(torch.cat([batch["target"], batch["reference"]]), self.config.crop, context.rng)
        noise = random_noise(self.latent_shape(target), self.config.latent_noise, context.rng)
        return self.losses(target, *noise, context.step)

    def latent_shape(self, pixels: Tensor) -> torch.Size:
        """Return the shape of the latents of pixels (B, 3, H, W)."""
        config = self.vae.config
        factor = 2 ** (len(config.block_out_channels) - 1)
        height, width = pixels.shape[-2:]
        return torch.Size((len(pixels), config.latent_channels, height // factor, width // factor))

    def losses(self, target: Tensor, noise: Tensor, latent_noise: Tensor, step: int) -> Losses:
        """Return the losses on pixels.

        Args:
            target: (B, 3, H, W) in [0, 1].
            noise: (B, C, h, w) normal noise, to sample from the posterior.
            latent_noise: (B, C, h, w), added to the latents in units of their standard deviation.
            step: Steps taken so far; the discriminator counts from `adversarial_start` on.
        """
        posterior = self.vae.encode(target * 2 - 1).latent_dist
        latents = posterior.mean + posterior.std * noise.to(posterior.mean.dtype)
        if self.config.latent_noise:
            latents = latents + (latents.detach().float().std() * latent_noise).to(latents.dtype)
        reconstruction = self.vae.decode(latents).sample / 2 + 0.5
        losses = self._reconstruction_losses(reconstruction.float(), target) | {
            "kl": posterior.kl().mean() / posterior.mean[0].numel()
        }
        losses["loss"] = (
            losses["absolute"] + self.config.chroma_weight * losses["colour"] + self.config.kl * losses["kl"]
        )
        if self.perceptual is not None:
            losses["loss"] = losses["loss"] + self.config.perceptual * losses["perceptual"]
        if self.discriminator is not None:
            losses |= self._adversarial_losses(reconstruction.float(), target)
            weight = self.config.adversarial if step >= self.config.adversarial_start else 0.0
            losses["loss"] = losses["loss"] + losses["discriminator"] + weight * losses["adversarial"]
        if self.training:
            self._measure(posterior.mean.detach())
        return losses

    def _reconstruction_losses(self, reconstruction: Tensor, target: Tensor) -> Losses:
        losses = {
            "absolute": F.l1_loss(reconstruction, target),
            "colour": F.l1_loss(_opponent(reconstruction), _opponent(target)),
        }
        losses["psnr"] = -10 * F.mse_loss(reconstruction.detach().clamp(0, 1), target).log10()
        if self.perceptual is not None:
            losses["perceptual"] = self.perceptual(reconstruction, target)
        return losses

    def _adversarial_losses(self, reconstruction: Tensor, target: Tensor) -> Losses:
        """Return the losses of generator and discriminator; each has the other's part detached."""
        assert self.discriminator is not None
        frozen = {name: weight.detach() for name, weight in self.discriminator.named_parameters()}
        logits: Tensor = functional_call(self.discriminator, frozen, (reconstruction,))
        discriminator_loss = hinge(self.discriminator(target), self.discriminator(reconstruction.detach()))
        return {"adversarial": -logits.mean(), "discriminator": discriminator_loss}

    @torch.no_grad()
    def _measure(self, mean: Tensor) -> None:
        """Update the running variance: over all steps at first, then over about the last hundred."""
        self.measured += 1
        self.latent_variance.lerp_(mean.float().var(), (1 / self.measured).clamp(min=0.01))

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the autoencoder's and the discriminator's parameters."""
        groups = [ParameterGroup("vae", [p for p in self.vae.parameters() if p.requires_grad], self.config.lr_scale)]
        if self.discriminator is not None:
            groups.append(ParameterGroup("discriminator", list(self.discriminator.parameters()), self.config.lr_scale))
        return groups

    def sample_images(self, batch: SubjectBatch) -> list[Tensor]:
        """Return images and their reconstructions."""
        latents = self.vae.encode(batch["target"] * 2 - 1).latent_dist.mode()
        return [batch["target"], (self.vae.decode(latents).sample.float() / 2 + 0.5).clamp(0, 1)]

    def export(self, folder: Path) -> None:
        """Write the VAE; its scaling factor brings latents to unit variance (Rombach et al. 2022, appendix G)."""
        if self.config.train_encoder:
            self.vae.register_to_config(scaling_factor=round(float(self.latent_variance.rsqrt()), 5))
        save_diffusers(self.vae, folder / "vae")


def random_crops(pixels: Tensor, size: int, rng: torch.Generator) -> Tensor:
    """Return a crop of each image (B, 3, H, W), at the same random position in all: (B, 3, size, size)."""
    height, width = pixels.shape[-2:]
    top = int(torch.randint(0, max(1, height - size + 1), (), generator=rng, device=rng.device))
    left = int(torch.randint(0, max(1, width - size + 1), (), generator=rng, device=rng.device))
    return pixels[..., top : top + size, left : left + size]


def _opponent(pixels: Tensor) -> Tensor:
    """Return red minus green, and blue minus yellow: (B, 2, H, W)."""
    red, green, blue = pixels.unbind(dim=1)
    return torch.stack([red - green, blue - (red + green) / 2], dim=1)


def random_noise(shape: torch.Size, amount: float, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return normal noise for the posterior, and noise to add to the latents, each of `shape` (B, C, h, w).

    A denoiser's latents have small errors, which a decoder that was not trained with noise shows as patches.

    Args:
        shape: Shape of the latents.
        amount: Largest noise of an image, in standard deviations of the latents; each image's is random below it.
        rng: Random generator on the device of the result.
    """
    noise, more = (torch.randn(shape, generator=rng, device=rng.device) for _ in range(2))
    share = torch.rand(shape[0], 1, 1, 1, generator=rng, device=rng.device)
    return noise, amount * share * more


@torch.no_grad()
def init_near_linear(vae: Any) -> None:
    """Initialize a new autoencoder near a linear code: averages down, copies up, small posterior variance.

    Residual branches start at zero (Goyal et al. 2017, section 5.1). Measured on `mini`'s shapes: 17.6 dB
    after 100 steps of 8 crops instead of 14.3, and colours at once instead of after a thousand steps.
    """
    for module in vae.modules():
        if isinstance(module, ResnetBlock2D):
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(module.conv2.bias)
            if module.conv_shortcut is not None:
                _add_diagonal(module.conv_shortcut.weight, 1.0)
        elif isinstance(module, Downsample2D):
            _add_diagonal(module.conv.weight[..., :2, :2], 0.25)
        elif isinstance(module, Upsample2D):
            _add_diagonal(module.conv.weight[..., 1:2, 1:2], 1.0)
    log_variance = slice(vae.config.latent_channels, None)  # the second half of the moments
    vae.quant_conv.weight[log_variance] *= 0.1
    vae.quant_conv.bias[log_variance] = -6.0


def _add_diagonal(weight: Tensor, value: float) -> None:
    """Add an identity from channel i to channel i, after damping the random weights."""
    weight *= 0.4
    rows = torch.arange(min(weight.shape[:2]), device=weight.device)
    weight[rows, rows] += value
