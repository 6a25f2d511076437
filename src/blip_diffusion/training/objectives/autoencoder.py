"""The autoencoder of latent diffusion (Rombach et al. 2022, section 3.1 and appendix G).

An absolute and a perceptual error, a slight pull of the posterior towards a unit Gaussian, and after a while a patch
discriminator. Convolutions don't care about the size of an image, so crops teach them as much for less.
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
    """Weights of the terms, and what the network sees."""

    crop: int = 64  # side of the random crops, in pixels
    chroma_weight: float = (
        0.0  # of the error in red against green and blue against yellow, which RGB alone weighs little
    )
    perceptual: float = 0.2
    lpips: Path | None = None  # a folder with its weights; none: EfficientNet-Lite0's early features
    kl: float = 1e-5  # of the KL divergence per latent number
    adversarial: float = 0.0  # 0 builds no discriminator
    adversarial_start: int = 0  # step at which the drawings begin to be judged
    lr_scale: float = 1.0  # times the schedule
    train_encoder: bool = True  # False polishes the decoder of a codec whose latents are in use
    latent_noise: float = 0.0  # up to so much of the latents' spread is noise: a decoder of drawings must bear some

    def __post_init__(self) -> None:
        if self.crop % 16 or self.crop < 16:
            raise ConfigError(f"autoencoder.crop is {self.crop}: use a multiple of 16.")
        if self.latent_noise < 0:
            raise ConfigError(f"autoencoder.latent_noise is {self.latent_noise}: use 0 or more.")


class Autoencoder(Objective):
    """Trains a diffusers `AutoencoderKL`."""

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
        self.register_buffer("measured", torch.zeros(()))  # how many steps it was measured in
        self.latent_variance: Tensor
        self.measured: Tensor

    def forward(self, batch: SubjectBatch, context: StepContext) -> Losses:
        """Return the losses on one crop of every target and reference."""
        wanted = random_crops(torch.cat([batch["target"], batch["reference"]]), self.config.crop, context.rng)
        noise = random_noise(self.latent_shape(wanted), self.config.latent_noise, context.rng)
        return self.losses(wanted, *noise, context.step)

    def latent_shape(self, pixels: Tensor) -> torch.Size:
        """Return the shape of the latents of pixels (B, 3, H, W)."""
        config = self.vae.config
        factor = 2 ** (len(config.block_out_channels) - 1)
        height, width = pixels.shape[-2:]
        return torch.Size((len(pixels), config.latent_channels, height // factor, width // factor))

    def losses(self, wanted: Tensor, noise: Tensor, disturbance: Tensor, step: int) -> Losses:
        """Return the losses on pixels.

        Args:
            wanted: (B, 3, H, W) in [0, 1].
            noise: (B, C, h, w) normal, of the sample from the posterior.
            disturbance: (B, C, h, w) what is added to the latents, in units of their standard deviation.
            step: Steps taken so far; the discriminator is heeded from `adversarial_start` on.
        """
        posterior = self.vae.encode(wanted * 2 - 1).latent_dist
        latents = posterior.mean + posterior.std * noise.to(posterior.mean.dtype)
        if self.config.latent_noise:
            latents = latents + (latents.detach().float().std() * disturbance).to(latents.dtype)
        drawn = self.vae.decode(latents).sample / 2 + 0.5
        losses = self._likeness(drawn.float(), wanted) | {"kl": posterior.kl().mean() / posterior.mean[0].numel()}
        losses["loss"] = (
            losses["absolute"] + self.config.chroma_weight * losses["colour"] + self.config.kl * losses["kl"]
        )
        if self.perceptual is not None:
            losses["loss"] = losses["loss"] + self.config.perceptual * losses["perceptual"]
        if self.discriminator is not None:
            losses |= self._judged(drawn.float(), wanted)
            taken_in = self.config.adversarial if step >= self.config.adversarial_start else 0.0
            losses["loss"] = losses["loss"] + losses["discriminator"] + taken_in * losses["adversarial"]
        if self.training:
            self._measure(posterior.mean.detach())
        return losses

    def _likeness(self, drawn: Tensor, wanted: Tensor) -> Losses:
        losses = {"absolute": F.l1_loss(drawn, wanted), "colour": F.l1_loss(_opponent(drawn), _opponent(wanted))}
        losses["psnr"] = -10 * F.mse_loss(drawn.detach().clamp(0, 1), wanted).log10()
        if self.perceptual is not None:
            losses["perceptual"] = self.perceptual(drawn, wanted)
        return losses

    def _judged(self, drawn: Tensor, wanted: Tensor) -> Losses:
        """Both players at once: the discriminator learns from detached drawings, and judges with detached weights."""
        assert self.discriminator is not None
        frozen = {name: weight.detach() for name, weight in self.discriminator.named_parameters()}
        verdict: Tensor = functional_call(self.discriminator, frozen, (drawn,))
        learned = hinge(self.discriminator(wanted), self.discriminator(drawn.detach()))
        return {"adversarial": -verdict.mean(), "discriminator": learned}

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
        """Images, and what is left of them."""
        latents = self.vae.encode(batch["target"] * 2 - 1).latent_dist.mode()
        return [batch["target"], (self.vae.decode(latents).sample.float() / 2 + 0.5).clamp(0, 1)]

    def export(self, folder: Path) -> None:
        """Write the VAE; its scaling factor brings latents to unit variance (Rombach et al. 2022, appendix G)."""
        if self.config.train_encoder:
            self.vae.register_to_config(scaling_factor=round(float(self.latent_variance.rsqrt()), 5))
        save_diffusers("vae", self.vae, folder / "vae")


def random_crops(pixels: Tensor, size: int, rng: torch.Generator) -> Tensor:
    """One crop of each image (B, 3, H, W), at the same place in all: (B, 3, size, size)."""
    height, width = pixels.shape[-2:]
    top = int(torch.randint(0, max(1, height - size + 1), (), generator=rng, device=rng.device))
    left = int(torch.randint(0, max(1, width - size + 1), (), generator=rng, device=rng.device))
    return pixels[..., top : top + size, left : left + size]


def _opponent(pixels: Tensor) -> Tensor:
    """Red less green, and blue less yellow: (B, 2, H, W)."""
    red, green, blue = pixels.unbind(dim=1)
    return torch.stack([red - green, blue - (red + green) / 2], dim=1)


def random_noise(shape: torch.Size, amount: float, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return normal noise for the posterior, and what disturbs the latents, each of `shape` (B, C, h, w).

    The decoder must bear some error, since a denoiser's answers are never quite right: it else shows patches of them.

    Args:
        shape: Of the latents.
        amount: At most so much of the latents' standard deviation is added to an image, some get less than others.
        rng: On the device of the result.
    """
    noise, more = (torch.randn(shape, generator=rng, device=rng.device) for _ in range(2))
    share = torch.rand(shape[0], 1, 1, 1, generator=rng, device=rng.device)
    return noise, amount * share * more


@torch.no_grad()
def init_near_linear(vae: Any) -> None:
    """Initialize a new autoencoder near a linear code: averages down, copies up, small posterior variance.

    Residual branches begin at zero, as Goyal et al. 2017 (section 5.1) begin them. Measured on `mini`'s shapes: 17.6 dB
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
    log_variance = slice(vae.config.latent_channels, None)  # the half of the moments that is no mean
    vae.quant_conv.weight[log_variance] *= 0.1
    vae.quant_conv.bias[log_variance] = -6.0


def _add_diagonal(weight: Tensor, value: float) -> None:
    """Lets channel i pass into channel i, and damps the chance connections."""
    weight *= 0.4
    rows = torch.arange(min(weight.shape[:2]), device=weight.device)
    weight[rows, rows] += value
