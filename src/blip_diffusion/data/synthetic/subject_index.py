"""Choose subjects, pairs of their images, and accessories."""

import bisect
import itertools
import random
from collections import defaultdict
from collections.abc import Sequence

from blip_diffusion.data.synthetic import prompt_templates
from blip_diffusion.data.synthetic.assets import CutOut, is_3d
from blip_diffusion.data.synthetic.pair_spec import SyntheticConfig
from blip_diffusion.errors import DataError
from blip_diffusion.framing import WORN

_NOUNS = {"bow": ("bow", "ribbon")}  # categories of an accessory, where they differ from its word


class SubjectIndex:
    """Random choice of subjects, and of two images of each."""

    def __init__(self, cutouts: Sequence[CutOut], config: SyntheticConfig) -> None:
        self.cutouts, self.config = cutouts, config
        in_split = [cutout.split == config.split for cutout in cutouts]
        chosen = [
            keep and (not config.geometry or is_3d(cutout)) for cutout, keep in zip(cutouts, in_split, strict=True)
        ]
        self.views = rows_by([cutout.identity if keep else None for cutout, keep in zip(cutouts, chosen, strict=True)])
        if not self.views:
            models = " that are 3D models" if config.geometry else ""
            raise DataError(f"The dataset has no {config.split} subjects{models}.")
        self.names = list(self.views)
        kinds = [cutouts[rows[0]].kind for rows in self.views.values()]
        weight_of = {kind: kinds.count(kind) ** (config.kind_temperature - 1) for kind in set(kinds)}
        weight_of["outline"] = weight_of.get("outline", 0.0) * config.outlines
        weights = [weight_of[kind] for kind in kinds]
        self.cumulative = list(itertools.accumulate(weights))
        self.things = {
            accessory: rows
            for accessory in prompt_templates.ACCESSORIES
            if (
                rows := [
                    i
                    for i, cutout in enumerate(cutouts)
                    if in_split[i] and cutout.kind != "outline" and _is_a(cutout, accessory)
                ]
            )
        }

    def pair(self, rng: random.Random) -> tuple[int, int]:
        """Sample a reference and a target: two images of one subject."""
        at = bisect.bisect(self.cumulative, rng.random() * self.cumulative[-1])
        views = self.views[self.names[min(at, len(self.names) - 1)]]
        target = rng.choice(views)
        if len(views) == 1 or rng.random() < self.config.same_view:
            return target, target
        others = [view for view in views if view != target]
        weights = [self._nearness(view, target) for view in others]
        return (rng.choices(others, weights)[0] if sum(weights) > 0 else target), target

    def accessory(self, target: int, rng: random.Random) -> tuple[str, int]:
        """Sample an accessory that suits the subject, and its cut-out; ("", -1) if there is none."""
        subject = self.cutouts[target]
        fitting = [name for name in self.things if (subject.animate or name not in WORN) and not _is_a(subject, name)]
        if not fitting:
            return "", -1
        name = rng.choice(fitting)
        return name, self.accessory_of(name, rng)

    def accessory_of(self, name: str, rng: random.Random) -> int:
        if name not in self.things:
            raise DataError(f"The dataset has no {name} among its {self.config.split} cut-outs.")
        return rng.choice(self.things[name])

    def _nearness(self, a: int, b: int) -> float:
        """Return the weight of two images of one subject as a pair, which is higher for nearer views."""
        first, second = _azimuth(self.cutouts[a]), _azimuth(self.cutouts[b])
        if first is None or second is None:
            return 1.0
        apart = abs((first - second + 180) % 360 - 180)
        return float(0.5 ** ((apart / self.config.azimuth) ** 2)) if apart <= 90 else 0.0


def rows_by(keys: Sequence[str | None]) -> dict[str, list[int]]:
    """Return row numbers by key; rows without a key are left out."""
    rows: dict[str, list[int]] = defaultdict(list)
    for i, key in enumerate(keys):
        if key is not None:
            rows[key].append(i)
    return dict(rows)


def _is_a(cutout: CutOut, noun: str) -> bool:
    """Return whether a cut-out can be an accessory; an emoji of a person with a ball is not a ball."""
    return cutout.category in _NOUNS.get(noun, (noun,)) and "person" not in cutout.name


def _azimuth(cutout: CutOut) -> float | None:
    try:
        return float(cutout.view)
    except ValueError:
        return None
