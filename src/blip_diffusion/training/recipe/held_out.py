"""The metrics of each phase, on pairs of held-out subjects."""

from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from blip_diffusion.data.synthetic.assets import AssetLibrary
from blip_diffusion.data.synthetic.pair_spec import SyntheticConfig
from blip_diffusion.diffusion.latents import LatentCodec
from blip_diffusion.protocols import VAE
from blip_diffusion.training.recipe.cuda_graph import autocast
from blip_diffusion.training.recipe.objectives import PackedConsistency, PackedRepresentation, PackedSubject
from blip_diffusion.training.recipe.packing import Rows, to_pixels, words_of

CHUNK = 64
TIMESTEPS = (999, 800, 600, 300)
NOISE_SEED = 5


def held_out_config(config: SyntheticConfig, world: AssetLibrary) -> SyntheticConfig:
    """Return the configuration of plain pairs of held-out subjects, or of any if none are held out."""
    split = "heldout" if any(cutout.split == "heldout" for cutout in world.cutouts) else config.split
    return replace(
        config,
        split=split,
        light=0.0,
        layout=0.0,
        anywhere=0.0,
        hue_rotation=0.0,
        colours=0.0,
        counts=0.0,
        sizes=0.0,
        positions=0.0,
        accessories=0.0,
        styles=0.0,
    )


@torch.no_grad()
def autoencoder_metrics(vae: VAE, rows: Rows) -> dict[str, float]:
    """Return the PSNR of encoded and decoded targets in dB: of the whole image, and of the subject."""
    codec, whole, subject = LatentCodec(vae), [], []
    for part in chunks(rows):
        pixels = to_pixels(part["target"])
        errors = (codec.decode(codec.encode(pixels)).float() - pixels).pow(2)
        mask = F.interpolate(to_pixels(part["mask"]), size=pixels.shape[-2:])
        whole.append(errors.mean((1, 2, 3)))
        subject.append((errors * mask).sum((1, 2, 3)) / (3 * mask.sum((1, 2, 3))).clamp(min=1))
    return {"psnr": _decibel(torch.cat(whole)), "psnr_subject": _decibel(torch.cat(subject))}


@torch.no_grad()
def representation_metrics(objective: PackedRepresentation, rows: Rows) -> dict[str, float]:
    """Return the reconstruction's absolute error at half its size and mask IoU, and the finder's mask IoU."""
    encoder, errors, crops, masks = objective.representation.encoder.image_encoder, [], [], []
    for part in chunks(rows):
        with autocast(part["reference"].device):
            features = encoder(objective.pixels(part["reference"]))
            reconstruction = objective.representation.reconstruct(features, words_of(part, "category")).float()
            mask = objective.finder(encoder.features(objective.pixels(part["target"]))).float()
        target = to_pixels(part["object_crop"])
        errors.append((F.avg_pool2d(reconstruction, 2) - F.avg_pool2d(target, 2)).abs().mean((1, 2, 3)))
        crops.append(iou(reconstruction[:, 3], target[:, 3]))
        masks.append(iou(mask.sigmoid()[:, 0], to_pixels(part["mask"])[:, 0]))
    names = ("reconstruction_l1", "reconstruction_iou", "finder_iou")
    return {name: float(torch.cat(values).mean()) for name, values in zip(names, (errors, crops, masks), strict=True)}


@torch.no_grad()
def subject_metrics(objective: PackedSubject, rows: Rows) -> dict[str, float]:
    """Return the mean squared error of the predicted x0 on the subject, by timestep."""
    device = rows["target"].device
    rng = torch.Generator(device).manual_seed(NOISE_SEED)
    sums = {timestep: torch.zeros(2) for timestep in TIMESTEPS}
    for part in chunks(rows):
        latents = objective.model.latents.encode(to_pixels(part["target"])).float()
        none = torch.zeros(len(latents), dtype=torch.bool, device=device)
        mask = F.interpolate(to_pixels(part["mask"]), size=latents.shape[-2:], mode="area")
        for timestep in TIMESTEPS:
            noise = torch.randn(latents.shape, generator=rng, device=device)
            clean = _predicted(objective, part | {"bare": none, "empty": none}, latents, noise, timestep)
            errors = (clean - latents).pow(2).mean(1, keepdim=True)
            sums[timestep] += torch.stack([(errors * mask).sum(), mask.sum()]).cpu()
    return {f"x0_error_t{timestep}": float(top / bottom) for timestep, (top, bottom) in sums.items()}


@torch.no_grad()
def consistency_metrics(objective: PackedConsistency, rows: Rows) -> dict[str, float]:
    """Return the error of the student's first prediction, relative to the variance of the teacher's results."""
    rng = torch.Generator(rows["target"].device).manual_seed(NOISE_SEED)
    sums = torch.zeros(2)
    for part in chunks(rows):
        none = torch.zeros(len(part["target"]), dtype=torch.bool, device=rng.device)
        noise = torch.randn(objective.core.latent_shape(len(none)), generator=rng, device=rng.device)
        with autocast(rng.device):
            errors, variance = objective.distance(part | {"noise": noise, "empty": none, "bare": none})
        sums += torch.stack([errors, variance]).cpu()
    return {"distance": float(sums[0] / sums[1])}


def _predicted(objective: PackedSubject, rows: Rows, latents: Tensor, noise: Tensor, timestep: int) -> Tensor:
    """Return the x0 that the U-Net's prediction implies."""
    timesteps = torch.full((len(latents),), timestep, device=latents.device)
    noised = objective.noising.noised(latents, noise, timesteps)
    with autocast(latents.device):
        states = objective.text_states(objective.subject_tokens(rows), rows)
        prediction = objective.model.denoiser(states)(noised, timesteps)
    return objective.noising.predict_x0(noised, prediction.float(), timesteps)


def iou(predicted: Tensor, target: Tensor) -> Tensor:
    """Return the intersection over union (B,) of masks (B, H, W), thresholded at 0.5."""
    a, b = predicted > 0.5, target > 0.5
    return (a & b).sum((1, 2)) / (a | b).sum((1, 2)).clamp(min=1)


def _decibel(errors: Tensor) -> float:
    return float(-10 * errors.clamp(min=1e-10).log10().mean())


def chunks(rows: Rows) -> Iterator[Rows]:
    """Yield the rows in parts of `CHUNK`."""
    for start in range(0, len(rows["target"]), CHUNK):
        yield {name: value[start : start + CHUNK] for name, value in rows.items()}
