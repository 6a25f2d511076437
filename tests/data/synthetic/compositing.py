"""Helpers of the tests of synthetic pairs."""

import random

from blip_diffusion.data.synthetic.assets import AssetLibrary
from blip_diffusion.data.synthetic.pair_sampler import PairSampler
from blip_diffusion.data.synthetic.pair_spec import PairSpec, SyntheticConfig

from .synthetic_world import make_world

WORLD = make_world()
PLAIN = SyntheticConfig(size=64, colours=0, counts=0, sizes=0, positions=0, accessories=0, styles=0)


def pair_sampler(
    config: SyntheticConfig = PLAIN, *, world: AssetLibrary = WORLD, batch_size: int = 24, seed: int = 0
) -> PairSampler:
    return PairSampler(world, config, batch_size=batch_size, seed=seed)


def row(identity: str, view: str = "") -> int:
    return next(i for i, c in enumerate(WORLD.cutouts) if c.identity == identity and view in ("", c.view))


def specs(config: SyntheticConfig, n: int = 400) -> list[PairSpec]:
    pairs, rng = pair_sampler(config), random.Random(0)
    return [pairs.sample(rng) for _ in range(n)]
