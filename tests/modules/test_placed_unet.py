"""Cross-attention with positions of the subject tokens."""

import math

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor

from blip_diffusion.modules.placed_unet import (
    CODE_WIDTH,
    PlacedUNet2DConditionModel,
    cross_attentions,
    place_code,
    token_codes,
)
from blip_diffusion.training.shapes import MINI, TINY_PLACED


def unet() -> PlacedUNet2DConditionModel:
    torch.manual_seed(0)
    network = PlacedUNet2DConditionModel(**TINY_PLACED.unet)
    network.init_placed()
    return network.eval()


def test_position_codes_are_most_similar_at_equal_positions() -> None:
    places = torch.rand(64, 2, generator=torch.Generator().manual_seed(0))
    codes = place_code(places)
    products = codes @ codes.T
    assert codes.shape == (64, CODE_WIDTH)
    torch.testing.assert_close(products.diagonal(), torch.full((64,), CODE_WIDTH / 2))
    assert (products.argmax(dim=1) == torch.arange(64)).all()


def test_product_of_position_codes_depends_on_distance_only() -> None:
    a, b, shift = torch.tensor([0.2, 0.3]), torch.tensor([0.35, 0.1]), torch.tensor([0.11, 0.4])
    torch.testing.assert_close(place_code(a) @ place_code(b), place_code(a + shift) @ place_code(b + shift))


def test_tokens_are_placed_row_by_row_in_their_frame() -> None:
    codes = token_codes(torch.tensor([[[0.5, 0.0, 0.5, 1.0]]]), 4)
    places = torch.tensor([[0.625, 0.25], [0.875, 0.25], [0.625, 0.75], [0.875, 0.75]])
    torch.testing.assert_close(codes[0], place_code(places))


def test_several_frames_add_up_and_empty_frames_add_nothing() -> None:
    one, other = torch.tensor([0.0, 0.0, 0.4, 0.4]), torch.tensor([0.6, 0.0, 0.4, 0.4])
    none = torch.zeros(4)
    both = token_codes(torch.stack([one, other])[None], 4)
    torch.testing.assert_close(both, token_codes(one[None, None], 4) + token_codes(other[None, None], 4))
    torch.testing.assert_close(token_codes(torch.stack([one, none])[None], 4), token_codes(one[None, None], 4))


def test_mirrored_frame_mirrors_the_tokens() -> None:
    plain, mirrored = (
        token_codes(torch.tensor([[frame]]), 4) for frame in ([0.1, 0.0, 0.8, 1.0], [0.9, 0.0, -0.8, 1.0])
    )
    torch.testing.assert_close(mirrored[:, [1, 0, 3, 2]], plain)


def test_new_network_attends_to_the_token_at_its_position() -> None:
    network = PlacedUNet2DConditionModel(**MINI.unet)  # its heads are wide enough for a complete position code
    network.init_placed()
    layer = cross_attentions(network)[0]
    places = torch.tensor([[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]])
    query = layer.processor.place(place_code(places))  # what is added to the queries of a 2 x 2 grid
    states = torch.cat([torch.zeros(4, 256), place_code(places)], dim=1)
    keys = layer.to_k(states)
    width = layer.to_q.out_features // layer.heads
    scores = query[:, :width] @ keys[:, :width].T / math.sqrt(width)
    assert (scores.argmax(dim=1) == torch.arange(4)).all()


def test_moving_the_tokens_moves_the_prediction() -> None:
    network, noise = unet(), torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    words = torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(2))
    outputs = []
    for left in (0.0, 0.5):
        codes = token_codes(torch.tensor([[[left, 0.0, 0.5, 1.0]]]), 4)
        states = torch.cat([words, torch.nn.functional.pad(codes, (0, 0, 1, 1))], dim=-1)
        outputs.append(network(noise, torch.tensor(900), encoder_hidden_states=states).sample)
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3


@pytest.mark.parametrize("shape", [(4, 4), (4, 6), (6, 4)])
def test_images_of_any_shape(shape: tuple[int, int]) -> None:
    output = unet()(
        torch.zeros(2, 4, *shape), torch.tensor(5), encoder_hidden_states=torch.zeros(2, 6, 32 + CODE_WIDTH)
    )
    assert output.sample.shape == (2, 4, *shape)


def test_masked_state_is_ignored() -> None:
    network = unet()
    states = torch.randn(1, 6, 32 + CODE_WIDTH, generator=torch.Generator().manual_seed(3))
    changed = states.clone()
    changed[:, 4:] = 9.0
    mask = torch.tensor([[1, 1, 1, 1, 0, 0]])
    masked = [
        network(torch.ones(1, 4, 4, 4), torch.tensor(5), encoder_hidden_states=s, encoder_attention_mask=mask).sample
        for s in (states, changed)
    ]
    torch.testing.assert_close(*masked)


def test_diffusers_pipelines_refuse_it() -> None:
    with pytest.raises(ValueError, match="placed_tokens"):
        UNet2DConditionModel.from_config(dict(unet().config))


def test_unet_is_rebuilt_from_its_configuration() -> None:
    network = unet()
    again = PlacedUNet2DConditionModel.from_config(dict(network.config))
    again.load_state_dict(network.state_dict())


def test_attention_switches_of_diffusers_keep_the_positions() -> None:
    network = unet()
    given = torch.ones(1, 4, 4, 4), torch.tensor(5), torch.randn(1, 6, 32 + CODE_WIDTH)
    plain = network(*given).sample
    for switch in (
        lambda: network.set_attention_slice("max"),
        lambda: network.set_attn_processor(AttnProcessor()),
        lambda: network.fuse_qkv_projections(),
        lambda: network.unfuse_qkv_projections(),
        lambda: network.set_default_attn_processor(),
    ):
        switch()
        torch.testing.assert_close(network(*given).sample, plain, atol=1e-5, rtol=0)
