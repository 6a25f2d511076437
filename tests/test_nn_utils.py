"""Helpers that inspect networks."""

import torch
from peft import LoraConfig
from torch import nn

from blip_diffusion.model import BlipDiffusion
from blip_diffusion.nn_utils import iter_modules, weights_version


def test_the_version_changes_with_the_weights(model: BlipDiffusion) -> None:
    encoder = model.text_encoder
    versions = [weights_version(encoder)]
    assert weights_version(encoder) == versions[0]

    def changed() -> bool:
        versions.append(weights_version(encoder))
        return versions[-1] not in versions[:-1]

    with torch.no_grad():
        encoder.final_layer_norm.bias.add_(1)
    assert changed()
    encoder.final_layer_norm.bias = nn.Parameter(torch.zeros(32))
    assert changed()
    encoder.to(torch.bfloat16)
    assert changed()
    encoder.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]), "one")
    assert changed()
    layer = encoder.encoder.layers[0].self_attn.q_proj
    layer.scale_layer(0.5)
    assert changed()
    encoder.disable_adapters()
    assert changed()
    assert weights_version(nn.Linear(2, 2)) != weights_version(nn.Linear(2, 2))


def test_modules_are_in_the_order_of_torch(model: BlipDiffusion) -> None:
    shared = nn.Linear(2, 2)
    for network in (model, model.unet, nn.ModuleList([shared, nn.Sequential(shared), nn.Linear(2, 2)])):
        assert list(iter_modules(network)) == list(network.modules())
