"""Accuracy of the category by a linear probe of the frozen image encoder, to which captions are compared."""

from dataclasses import replace

import torch
from torch import Tensor

from blip_diffusion.blip2 import Blip2
from blip_diffusion.data.synthetic.assets import AssetLibrary
from blip_diffusion.data.synthetic.caption_parser import CaptionParser, scene_words
from blip_diffusion.data.synthetic.pair_sampler import PairSampler
from blip_diffusion.evaluation.blip2.captions import BATCH, SYNTHETIC, HeldOut, over_subjects, slices
from blip_diffusion.evaluation.features.linear_probe import fit_classifier
from blip_diffusion.evaluation.metrics.statistics import Estimate


def probe_accuracy(model: Blip2, world: AssetLibrary, held: HeldOut, *, images: int, seed: int = 0) -> Estimate:
    """Return the share of held-out images whose category a linear probe names.

    The probe is ridge regression on the mean and the maximum over an image's patches of the frozen features.

    Args:
        model: A model with an image encoder.
        world: The asset library.
        held: Held-out images and captions.
        images: Number of composites of training subjects that the probe is fitted to.
        seed: Seed of these composites.

    Returns:
        Accuracy in [0, 1], with its 95 % bootstrap interval over subjects.
    """
    sampler = PairSampler(world, replace(SYNTHETIC, split="train"), batch_size=BATCH, seed=seed)
    batches = [sampler(index) for index in range(-(-images // BATCH))]
    features = torch.cat([pooled_features(model, batch["target"]) for batch in batches])
    probe = fit_classifier(features, [category for batch in batches for category in batch["category"]])
    named = probe(torch.cat([pooled_features(model, held.pixels[rows]) for rows in slices(len(held))]))
    parse = CaptionParser(scene_words(world))
    correct = [float(parse(caption).category == name) for caption, name in zip(held.captions, named, strict=True)]
    return over_subjects(torch.tensor(correct), held.subjects)


@torch.no_grad()
def pooled_features(model: Blip2, pixels: Tensor) -> Tensor:
    """Return mean and maximum over the patches (B, 2 V) of the features of images (B, 3, S, S) in [0, 1]."""
    features = model.image_encoder.features(model.pixels(pixels.to(model.device))).float().cpu()
    return torch.cat([features.mean(dim=1), features.amax(dim=1)], dim=1)
