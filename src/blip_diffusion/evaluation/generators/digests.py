"""Digests that identify what generated a run's images."""

import hashlib
import json

from torch import nn

from blip_diffusion.fileio import sha256_of
from blip_diffusion.nn_utils import tensor_bytes
from blip_diffusion.protocols import Scheduler


def scheduler_digest(scheduler: Scheduler) -> str:
    """Identify the settings of a scheduler. diffusers' private entries, in random order, are left out."""
    public = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
    return sha256_of(json.dumps(public, sort_keys=True, default=str).encode())[:16]


def weights_digest(module: nn.Module) -> str:
    """Identify the weights of a network."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor_bytes(value))
    return digest.hexdigest()[:16]
