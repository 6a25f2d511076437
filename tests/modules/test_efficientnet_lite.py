"""EfficientNet-Lite, compared with `efficientnet-lite-pytorch` 0.1.0 on the same weights and image."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from blip_diffusion.modules.efficientnet_lite import LITE2, EfficientNetLite, SameConv, read_weights
from blip_diffusion.training.initialization import lite0_weights

PING_PONG_BALL = 722
RECORDED = {  # block: mean and standard deviation of its output
    0: (0.631805, 7.026110),
    4: (0.152986, 7.869412),
    10: (-0.226555, 6.064607),
    15: (-0.044194, 2.873076),
    -1: (0.190071, 0.768609),
}


@pytest.fixture(scope="module")
def network() -> EfficientNetLite:
    return read_weights(lite0_weights(), EfficientNetLite(head=True))


def ball(side: int = 224) -> Tensor:
    """An orange disc before blue stripes, (1, 3, side, side) in [0, 1]."""
    y, x = torch.meshgrid(torch.arange(side) / side, torch.arange(side) / side, indexing="ij")
    disc = ((x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.09).float()
    green = disc * 0.35 + 0.2 * (1 - disc) * y
    return torch.stack([disc * (0.6 + 0.4 * x), green, (1 - disc) * (0.5 + 0.5 * torch.sin(20 * x))])[None]


@torch.no_grad()
def test_every_stage_agrees_with_the_reference(network: EfficientNetLite) -> None:
    outputs = network((ball() * 255 - 127) / 128, tuple(RECORDED))
    for output, (mean, std) in zip(outputs, RECORDED.values(), strict=True):
        assert output.mean().item() == pytest.approx(mean, abs=2e-5)
        assert output.std().item() == pytest.approx(std, abs=2e-5)


@torch.no_grad()
def test_pretrained_network_classifies_a_ball(network: EfficientNetLite) -> None:
    published = torch.load(lite0_weights(), map_location="cpu", weights_only=True)
    pooled = network((ball() * 255 - 127) / 128, (-1,))[0].mean(dim=(2, 3))
    logits = F.linear(pooled, published["_fc.weight"], published["_fc.bias"])[0]
    assert logits.argmax() == PING_PONG_BALL
    assert logits[PING_PONG_BALL].item() == pytest.approx(8.2630, abs=1e-3)


def test_read_weights_freezes(network: EfficientNetLite) -> None:
    assert not network.training and not any(parameter.requires_grad for parameter in network.parameters())


@torch.no_grad()
def test_blocks_after_the_last_are_not_built(network: EfficientNetLite) -> None:
    short = read_weights(lite0_weights(), EfficientNetLite(last_block=4))
    assert len(short.blocks) == 5
    pixels = (ball(64) * 255 - 127) / 128
    assert torch.equal(short(pixels, (4,))[0], network(pixels, (4,))[0])


@pytest.mark.parametrize(("size", "kernel", "stride"), [(7, 3, 2), (8, 3, 2), (8, 5, 2), (9, 5, 1)])
def test_same_padding_puts_the_odd_pixel_last(size: int, kernel: int, stride: int) -> None:
    """Same padding of TensorFlow: the output has ⌈size / stride⌉ pixels, and sums of ones show the padding."""
    convolution = SameConv(1, 1, kernel, stride, bias=False)
    torch.nn.init.ones_(convolution.weight)
    counts = convolution(torch.ones(1, 1, size, size)).detach()[0, 0, -(-size // stride) // 2] / kernel
    out = -(-size // stride)
    total = max((out - 1) * stride + kernel - size, 0)
    starts = [i * stride - total // 2 for i in range(out)]
    assert counts.tolist() == [min(start + kernel, size) - max(start, 0) for start in starts]


def test_a_head_that_was_not_built() -> None:
    with pytest.raises(ValueError, match="without its head"):
        EfficientNetLite(last_block=0)(torch.zeros(1, 3, 16, 16), (-1,))


def test_lite2_is_wider_and_deeper() -> None:
    with torch.device("meta"):
        assert len(EfficientNetLite(LITE2).blocks) == 21
