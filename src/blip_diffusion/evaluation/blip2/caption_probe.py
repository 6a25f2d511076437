"""Accuracy of categories and scenes by a linear probe of the frozen image encoder, to which captions are compared."""

from dataclasses import replace

import torch
from torch import Tensor

from blip_diffusion.blip2 import Blip2
from blip_diffusion.data.synthetic.assets import AssetLibrary
from blip_diffusion.data.synthetic.caption_parser import CaptionParser, scene_words
from blip_diffusion.data.synthetic.pair_sampler import PairSampler
from blip_diffusion.evaluation.blip2.captions import BATCH, SYNTHETIC, HeldOut, caption_correct, over_subjects, slices
from blip_diffusion.evaluation.features.linear_probe import fit_classifier
from blip_diffusion.evaluation.metrics.statistics import UNDEFINED, Estimate

PROBED = ("category", "scene")


def probe_accuracy(
    model: Blip2, world: AssetLibrary, held: HeldOut, *, images: int, seed: int = 0
) -> dict[str, Estimate]:
    """Return the share of held-out images whose category and whose scene a linear probe names.

    The probes are ridge regressions on the mean and the maximum over an image's patches of the frozen features.

    Args:
        model: A model with an image encoder.
        world: The asset library.
        held: Held-out images and captions.
        images: Number of composites of training subjects that the probes are fitted to.
        seed: Seed of these composites.

    Returns:
        Accuracy in [0, 1] of each of `PROBED`, among captions that mention it, with 95 % bootstrap intervals over
        subjects; `UNDEFINED` for a field that no fitted caption mentions.
    """
    sampler = PairSampler(world, replace(SYNTHETIC, split="train"), batch_size=BATCH, seed=seed)
    pooled, captions = [], []
    for index in range(-(-images // BATCH)):
        batch = sampler(index)
        pooled.append(pooled_features(model, batch["target"]))
        captions += batch["caption"]
    features = torch.cat(pooled)[:images]
    held_features = torch.cat([pooled_features(model, held.pixels[rows]) for rows in slices(len(held))])
    parse = CaptionParser(scene_words(world))
    fitted = [parse(caption) for caption in captions[:images]]
    truth = [parse(caption) for caption in held.captions]
    accuracy = {}
    for field in PROBED:
        labels = [getattr(facts, field) for facts in fitted]
        known = torch.tensor([bool(label) for label in labels])
        if not known.any():
            accuracy[field] = UNDEFINED
            continue
        probe = fit_classifier(features[known], [label for label in labels if label])
        correct = caption_correct([getattr(facts, field) for facts in truth], probe(held_features))
        accuracy[field] = over_subjects(correct, held.subjects)
    return accuracy


@torch.no_grad()
def pooled_features(model: Blip2, pixels: Tensor) -> Tensor:
    """Return mean and maximum over the patches (B, 2 V) of the features of images (B, 3, S, S) in [0, 1]."""
    features = model.image_encoder.features(model.pixels(pixels.to(model.device))).float().cpu()
    return torch.cat([features.mean(dim=1), features.amax(dim=1)], dim=1)
