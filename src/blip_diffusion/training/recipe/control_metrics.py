"""Metrics of structure control on held-out pairs: denoising errors, and agreement of samples with the hint."""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from blip_diffusion.diffusion.controlnet import Control, is_adapter
from blip_diffusion.edges import canny_edges
from blip_diffusion.framing import default_boxes, frames_of
from blip_diffusion.images import preprocess, to_pil
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.references import find_subject
from blip_diffusion.sampling import sample_images
from blip_diffusion.training.objectives.control import control_denoiser, empty_hint, with_default_frames
from blip_diffusion.training.recipe.control import FRAMES, HINT, PackedControl
from blip_diffusion.training.recipe.cuda_graph import autocast
from blip_diffusion.training.recipe.held_out import NOISE_SEED, TIMESTEPS, chunks, iou
from blip_diffusion.training.recipe.packing import Rows, to_pixels

SAMPLE_CHUNK = 16


@torch.no_grad()
def control_metrics(objective: PackedControl, rows: Rows, samples: int) -> dict[str, float]:
    """Return the metrics of a trained network, used as `blip-diffusion generate --control` uses it.

    The subject's frame is that of its box in the control image, and an adapter acts on the conditional prediction only.

    Args:
        objective: Model and network.
        rows: Held-out pairs. No prompt or subject is dropped.
        samples: Number of pairs for which images are sampled; 0 for no metrics of samples.

    Returns:
        `x0_error_*`, the mean squared error of the predicted x0, averaged over `held_out.TIMESTEPS`; and the metrics
        `METRICS` of sampled images. The suffix is the condition: the right hint, another image's (`wrong`), the frame
        without the network (`box`), for samples neither (`none`), for the error an `empty` hint. `ceiling` is the upper
        bound, the VAE reconstruction of the target.
    """
    rng = torch.Generator(rows["target"].device).manual_seed(NOISE_SEED)
    rows = rows | {"frames": frames_of_hints(objective, rows)}
    metrics = {f"x0_error_{name}": value for name, value in _denoising_errors(objective, rows, rng).items()}
    if samples:
        metrics |= _sample_metrics(objective, {name: value[:samples] for name, value in rows.items()})
    return metrics


def frames_of_hints(objective: PackedControl, rows: Rows) -> Tensor:
    """Return the frames (B, K, 4) of the subjects' boxes in the hints, or in the images whose edges are the hints."""
    if objective.config.hint != "canny":
        return rows[FRAMES]
    boxes = [find_subject(objective.model, image) for image in to_pil(to_pixels(rows["target"]))]
    frames = torch.zeros_like(rows["frames"])
    frames[:, :1] = frames_of([default_boxes("") if box is None else [box] for box in boxes]).to(frames)
    return frames


def edge_f1(edges: Tensor, reference: Tensor, *, tolerance: int = 1) -> Tensor:
    """Return the F1 score of edges.

    Args:
        edges: (B, 1, H, W), 1 on an edge.
        reference: (B, 1, H, W), the true edges.
        tolerance: Largest distance in pixels, along each axis, of matching edges.

    Returns:
        (B,) in [0, 1]; 0 if either has no edges.
    """
    precision, recall = _matched_share(edges, reference, tolerance), _matched_share(reference, edges, tolerance)
    return 2 * precision * recall / (precision + recall).clamp(min=1e-6)


def _matched_share(edges: Tensor, other: Tensor, tolerance: int) -> Tensor:
    """Return the share (B,) of edges with an edge of the other map within the tolerance."""
    near = F.max_pool2d(other, 2 * tolerance + 1, stride=1, padding=tolerance)
    return (edges * near).sum((1, 2, 3)) / edges.sum((1, 2, 3)).clamp(min=1)


def _denoising_errors(objective: PackedControl, rows: Rows, rng: torch.Generator) -> dict[str, float]:
    sums: dict[str, float] = {}
    for part in chunks(rows):
        latents = objective.model.latents.encode(to_pixels(part["target"])).float()
        for timestep in TIMESTEPS:
            noise = torch.randn(latents.shape, generator=rng, device=latents.device)
            for name, error in _errors(objective, part, latents, noise, timestep).items():
                sums[name] = sums.get(name, 0.0) + error * len(latents) / len(rows["target"]) / len(TIMESTEPS)
    return sums


def _errors(objective: PackedControl, rows: Rows, latents: Tensor, noise: Tensor, timestep: int) -> dict[str, float]:
    """Return the error of the predicted x0 by hint, at one timestep."""
    timesteps = torch.full((len(latents),), timestep, device=latents.device)
    noised = objective.noising.noised(latents, noise, timesteps)
    hint = hint_images(objective, rows)
    empty = empty_hint(objective.config.hint, hint)
    with autocast(latents.device):
        states = text_states(objective, rows)
        denoisers = {
            name: control_denoiser(objective.model, objective.network, states, given)
            for name, given in (("right", hint), ("wrong", hint.roll(1, 0)), ("empty", empty))
        } | {"box": objective.model.denoiser(states)}
        predictions = {name: denoiser(noised, timesteps).float() for name, denoiser in denoisers.items()}
    return {
        name: float((objective.noising.predict_x0(noised, prediction, timesteps) - latents).pow(2).mean())
        for name, prediction in predictions.items()
    }


def _sample_metrics(objective: PackedControl, rows: Rows) -> dict[str, float]:
    scores: dict[str, list[Tensor]] = {}
    for start in range(0, len(rows["target"]), SAMPLE_CHUNK):
        part = {key: value[start : start + SAMPLE_CHUNK] for key, value in rows.items()}
        hint = hint_images(objective, part)
        for condition, images in _samples(objective, part, hint, start).items():
            for name, metric in METRICS[objective.config.hint].items():
                scores.setdefault(f"{name}_{condition}", []).append(metric(objective.model, images, part))
    return {key: float(torch.cat(values).mean()) for key, values in scores.items()}


def _samples(objective: PackedControl, rows: Rows, hint: Tensor, seed: int) -> dict[str, Tensor]:
    """Return images (B, 3, H, W) by condition from the same noise, and the VAE reconstructions of the targets."""
    model, seeds = objective.model, range(seed, seed + len(hint))
    default = rows | {"frames": with_default_frames(rows["frames"], 1.0, torch.Generator(hint.device))}
    states, default_states = text_states(objective, rows), text_states(objective, default)
    with autocast(hint.device):
        reconstructed = model.latents.decode(model.latents.encode(to_pixels(rows["target"]))).float()
    return {
        "right": sample_controlled(objective, states, seeds, hint),
        "wrong": sample_controlled(objective, states, seeds, hint.roll(1, 0)),
        "box": sample_controlled(objective, states, seeds),
        "none": sample_controlled(objective, default_states, seeds),
        "ceiling": reconstructed,
    }


@torch.no_grad()
def sample_controlled(
    objective: PackedControl,
    states: Tensor,
    seeds: Sequence[int],
    hint: Tensor | None = None,
    *,
    scale: float = 1.0,
    end: float = 1.0,
    guess_mode: bool | None = None,
) -> Tensor:
    """Sample images with hints.

    Args:
        objective: Model and network.
        states: Text states (B, L, D) of `text_states`.
        seeds: One seed per image.
        hint: Control images (B, 1 or 3, H, W) in [0, 1]; default: the network is not used.
        scale: Scale of the network's features.
        end: Share of the steps after which the network is not used, in (0, 1].
        guess_mode: Whether the network acts on the conditional prediction only; default: for adapters.

    Returns:
        Images (B, 3, H, W) in [0, 1].
    """
    controls = [] if hint is None else [Control(objective.network, hint, scale, end=end)]
    guess = is_adapter(objective.network) if guess_mode is None else guess_mode
    with autocast(states.device):
        return sample_images(objective.model, states, seeds, controls=controls, guess_mode=guess)


def hint_images(objective: PackedControl, rows: Rows) -> Tensor:
    """Return the pairs' control images (B, 1 or 3, H, W) in [0, 1]."""
    return to_pixels(rows[f"{HINT}_{objective.config.hint}"])


def text_states(objective: PackedControl, rows: Rows) -> Tensor:
    """Return text states (B, L, D) of pairs without dropout; `frames` decides the subject's frame."""
    none = torch.zeros(len(rows["target"]), dtype=torch.bool, device=rows["target"].device)
    with autocast(none.device):
        return objective.subject.states_of(rows | {"bare": none, "empty": none})


def _edge_score(_model: BlipDiffusion, images: Tensor, rows: Rows) -> Tensor:
    return edge_f1(canny_edges(images), canny_edges(to_pixels(rows["target"])))


def _subject_edge_score(_model: BlipDiffusion, images: Tensor, rows: Rows) -> Tensor:
    """Return the F1 score of the edges inside the target's mask and on its outline."""
    near = F.max_pool2d((to_pixels(rows[f"{HINT}_mask"]) > 0).float(), 3, stride=1, padding=1)
    return edge_f1(canny_edges(images) * near, canny_edges(to_pixels(rows["target"])) * near)


def _mask_score(model: BlipDiffusion, images: Tensor, rows: Rows) -> Tensor:
    """Return the IoU of the mask that the model's subject finder predicts for an image with the target's."""
    reference = model.reference
    pixels = preprocess(images, reference.size, reference.mean, reference.std)
    mask = model.subject_finder(model.subject_encoder.image_encoder.features(pixels)).sigmoid()  # type: ignore[misc]
    small = F.interpolate(to_pixels(rows[f"{HINT}_mask"]), mask.shape[2:], mode="area")
    return iou(mask[:, 0].float(), small[:, 0])


Metric = Callable[[BlipDiffusion, Tensor, Rows], Tensor]
"""A function of a model, images (B, 3, H, W) and their pairs that returns scores (B,)."""

_SUBJECT: Mapping[str, Metric] = {"mask_iou": _mask_score, "subject_edge_f1": _subject_edge_score}
METRICS: Mapping[str, Mapping[str, Metric]] = {
    "canny": {"edge_f1": _edge_score},
    "mask": _SUBJECT,
    "depth": _SUBJECT,
    "normal": _SUBJECT,
}
"""The metrics of each hint. An image's depth isn't known: its outline and its inner edges are compared instead."""
