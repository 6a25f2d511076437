"""Frozen feature extractors of metrics: their protocol, a cache of features by file, and the loading of weights.

None of them is trained by this project, so that scores are independent of the generator's training.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from blip_diffusion.checkpoint.components import read_config
from blip_diffusion.checkpoint.hub_files import local_folder
from blip_diffusion.checkpoint.locate import check_source
from blip_diffusion.checkpoint.weights import check_loaded
from blip_diffusion.errors import CheckpointError, reason
from blip_diffusion.fileio import path_exists
from blip_diffusion.images import open_image
from blip_diffusion.pickles import check_pickles


class FeatureExtractor(Protocol):
    """A network that maps each image to one vector. `backbone` and `preprocessing` go into the report."""

    family: str
    backbone: str
    preprocessing: str

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        """Return features (B, F) of RGB images of any size."""
        ...


class CachedFeatures:
    """An extractor's features of image files, each of which is read once, and of images in memory."""

    def __init__(self, extractor: FeatureExtractor, *, batch_size: int = 32) -> None:
        self.extractor, self.batch_size = extractor, batch_size
        self._cache: dict[Path, Tensor] = {}

    def __call__(self, paths: Sequence[Path]) -> Tensor:
        """Return features (B, F) of image files."""
        new = [path for path in dict.fromkeys(paths) if path not in self._cache]
        for start in range(0, len(new), self.batch_size):
            batch = new[start : start + self.batch_size]
            self._cache |= dict(zip(batch, self.of_images([open_image(path) for path in batch]), strict=True))
        return torch.stack([self._cache[path] for path in paths])

    def of_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Return features (B, F) of RGB images, one batch at a time."""
        starts = range(0, len(images), self.batch_size)
        parts = [self.extractor(images[start : start + self.batch_size]) for start in starts]
        return torch.cat(parts).float().cpu()


def load_pretrained(kind: Any, source: str, **options: Any) -> Any:
    """Load a frozen transformers component from a folder or a hub id.

    No code that comes with it runs.

    Raises:
        CheckpointError: If that fails, or if weights are missing or not finite. A mistyped path never reaches the hub.
    """
    check_source(source, f"{kind.__name__} of a metric")
    load = _load_network if issubclass(kind, torch.nn.Module) else _load
    try:
        with _quiet_transformers():
            return load(kind, source, **options)
    except Exception as error:  # for damaged folders, transformers and torch raise errors of many types
        raise CheckpointError(
            f"The {kind.__name__} of a metric can't be loaded from {source}: name a folder in transformers' "
            f"layout, or a hub id if there is a network connection ({reason(error)[:200]})."
        ) from error


def _load(kind: Any, source: str, **options: Any) -> Any:
    return kind.from_pretrained(source, trust_remote_code=False, **options)


def _load_network(kind: Any, source: str, **options: Any) -> Any:
    source = local_folder(source)
    if path_exists(Path(source), Path.is_dir):
        read_config(Path(source) / "config.json", "the network")  # which checks its numbers
        check_pickles(Path(source))
    options["attn_implementation"] = "sdpa"  # whatever a file names: it may be a repository of compiled code
    network, found = _load(kind, source, output_loading_info=True, **options)
    check_loaded(network, found["missing_keys"])
    return network.eval().requires_grad_(False)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Silence transformers' progress bars and its lists of unused weights."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()


def vit_description(network: Any, source: str) -> str:
    """Describe a vision transformer for the report."""
    config = network.config
    return f"ViT of width {config.hidden_size}, patches of {config.patch_size}, from {Path(source).name}"
