"""Captioned images as training pairs: a target, a reference of its subject, and the prompt between them."""

import random
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from blip_diffusion import images
from blip_diffusion.data.batches import SubjectBatch
from blip_diffusion.data.captioned.rows import CaptionedImage, check_categories, scene_of
from blip_diffusion.errors import DataError, InputError
from blip_diffusion.escaping import warn
from blip_diffusion.framing import Box, box_of_mask, crop_to_subject, default_boxes, frames_of
from blip_diffusion.prompts import subject_prompt

Opened = tuple[Image.Image, Image.Image | None]
BOX_SIDE = 512
"""Pixels of a mask's longest side that its box is found in."""
MAX_UNREADABLE = 16
"""Unreadable images in a row: then it is not a damaged file, but the disk."""


class CaptionedBatches:
    """The batch of an index: `Batches` over captioned images. A pure function of (rows, settings, seed, index).

    The target is an image, cut square. Its reference is another image of the same subject where there is one; else
    the subject itself, cut out by its mask and put on a plain colour (Li et al. 2023, section 3.2); else, without a
    mask, the target.

    Args:
        rows: Images with captions; at least one.
        size: Side of references and targets in pixels.
        object_crop_size: Side of the object crop in pixels.
        batch_size: Pairs in a batch.
        seed: Of the order, the references and the colours.
        with_subject: Whether pairs are of a subject: each needs a category then, and captions become
            `a {category} {scene}`. Otherwise the reference is the image as it is, and captions are left alone.
        device: Where batches are.

    Raises:
        DataError: If there are no rows, or one lacks a category that is needed.

    Example:
        >>> rows = read_folder(Path("photos"))
        >>> CaptionedBatches(rows, size=512, object_crop_size=32, batch_size=4, seed=0)(0)["caption"]
    """

    def __init__(
        self,
        rows: Sequence[CaptionedImage],
        *,
        size: int,
        object_crop_size: int,
        batch_size: int,
        seed: int,
        with_subject: bool = True,
        device: torch.device | str = "cpu",
    ) -> None:
        if not rows:
            raise DataError("There are no images to train on: all are held out.")
        if with_subject:
            check_categories(rows)
        self.rows, self.size, self.object_crop_size = rows, size, object_crop_size
        self.batch_size, self.seed, self.with_subject, self.device = batch_size, seed, with_subject, device
        self._identities = _identities(rows)
        self._of_subject: dict[int, list[int]] = defaultdict(list)
        for index, identity in enumerate(self._identities):
            self._of_subject[identity].append(index)
        self._round: tuple[int, list[int]] = (-1, [])

    def __call__(self, index: int) -> SubjectBatch:
        rng = random.Random(f"{self.seed} {index}")
        places = range(index * self.batch_size, (index + 1) * self.batch_size)
        pairs = [self._pair(place, rng) for place in places]
        return self._batch(pairs)

    def _pair(self, place: int, rng: random.Random) -> "_Pair":
        target, opened = self._readable(place)
        others = [one for one in self._of_subject[self._identities[target]] if one != target]
        if not (self.with_subject and others):
            return _Pair(self, target, opened, target, opened, rng)
        reference = rng.choice(others)
        try:
            return _Pair(self, target, opened, reference, self.rows[reference].open(), rng)
        except InputError as error:
            warn(f"An image is passed over. {error}", stacklevel=2)
            return _Pair(self, target, opened, target, opened, rng)

    def _readable(self, place: int) -> tuple[int, Opened]:
        """Return the row of a place in the order, or of the next one that can be read."""
        for later in range(MAX_UNREADABLE):
            row = self._row(place + later)
            try:
                return row, self.rows[row].open()
            except (InputError, OSError) as error:
                warn(f"{self.rows[row].name} is passed over. {error}", stacklevel=2)
        raise DataError(f"{MAX_UNREADABLE} images in a row can't be read, the last is {self.rows[row].name}.")

    def _row(self, place: int) -> int:
        """Return the row at an index: each epoch has every row once, in a new random order."""
        round_, position = divmod(place, len(self.rows))
        if self._round[0] != round_:
            order = list(range(len(self.rows)))
            random.Random(f"{self.seed} round {round_}").shuffle(order)
            self._round = round_, order
        return self._round[1][position]

    def _batch(self, pairs: Sequence["_Pair"]) -> SubjectBatch:
        crops = np.stack([np.asarray(pair.object_crop(), dtype=np.float32) for pair in pairs]) / 255
        rgba = torch.from_numpy(crops).permute(0, 3, 1, 2)
        rows = [self.rows[pair.target] for pair in pairs]
        scenes = [scene_of(row.caption, row.category) for row in rows]
        captions = [subject_prompt(scene, row.category) for scene, row in zip(scenes, rows, strict=True)]
        whole = [row.caption for row in rows]
        return SubjectBatch(
            reference=self._tensor([pair.reference() for pair in pairs]),
            reference_caption=[pair.reference_caption() for pair in pairs],
            object_crop=torch.cat([rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]], dim=1).to(self.device),
            category=[row.category for row in rows],
            prompt=scenes if self.with_subject else whole,
            caption=captions if self.with_subject else whole,
            target=self._tensor([images.fit_square(pair.image, self.size) for pair in pairs]),
            target_alpha=self._tensor([pair.target_mask() for pair in pairs])[:, :1],
            frames=frames_of([[pair.box(scene)] for pair, scene in zip(pairs, scenes, strict=True)]).to(self.device),
            identity=torch.tensor([self._identities[pair.target] for pair in pairs], device=self.device),
        )

    def _tensor(self, squares: Sequence[Image.Image]) -> Tensor:
        return images.to_tensor(squares).to(self.device)


class _Pair:
    """A target and a reference, opened."""

    def __init__(
        self, batches: CaptionedBatches, target: int, shown: Opened, source: int, seen: Opened, rng: random.Random
    ) -> None:
        self.batches, self.target, self.source = batches, target, source
        self.image, self.mask = shown
        self.seen, self.seen_mask = seen
        self.colour = tuple(rng.randrange(256) for _ in range(3))

    def reference(self) -> Image.Image:
        """The reference's square."""
        size, box = self.batches.size, self._seen_box()
        if not self.batches.with_subject or box is None or self.seen_mask is None:
            return images.fit_square(self.seen, size)
        if self.source != self.target:
            return crop_to_subject(self.seen, box, size)
        plain = Image.new("RGB", self.seen.size, self.colour)
        return crop_to_subject(Image.composite(self.seen, plain, self.seen_mask), box, size)

    def reference_caption(self) -> str:
        row = self.batches.rows[self.source]
        alone = self.batches.with_subject and self.source == self.target and self.seen_mask is not None
        return subject_prompt("", row.category) if alone else row.caption

    def object_crop(self) -> Image.Image:
        """The reference without its background (RGBA); all of it where there is no mask."""
        size, box = self.batches.object_crop_size, self._seen_box()
        if box is None or self.seen_mask is None:
            return images.fit_square(self.seen, size).convert("RGBA")
        cut = crop_to_subject(self.seen, box, size)
        cut.putalpha(crop_to_subject(_on_black(self.seen_mask), box, size).convert("L"))
        return cut

    def target_mask(self) -> Image.Image:
        """Return the subject's mask in the target's square; without a mask, all ones."""
        size = self.batches.size
        if self.mask is None:
            return Image.new("RGB", (size, size), "white")
        return images.fit_square(_on_black(self.mask), size)

    def box(self, scene: str) -> Box:
        """The subject's box in the target's square."""
        found = None if self.mask is None else box_of_mask(images.to_tensor([self.target_mask()])[0, 0])
        return found or default_boxes(scene)[0]

    def _seen_box(self) -> Box | None:
        if self.seen_mask is None:
            return None
        small = self.seen_mask.copy()
        small.thumbnail((BOX_SIDE, BOX_SIDE))
        return box_of_mask(images.to_tensor([_on_black(small)])[0, 0])


def _on_black(mask: Image.Image) -> Image.Image:
    return mask.convert("RGB")


def _identities(rows: Sequence[CaptionedImage]) -> list[int]:
    """Return a number for each row, equal for rows of one subject."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(row.subject or f"\0{index}", len(numbers)) for index, row in enumerate(rows)]
