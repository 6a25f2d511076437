"""EfficientNet-Lite (Tan & Le 2019, without squeeze-and-excitation), with its batch norms folded: inference only.

timm has the network too, but needs a torchvision that matches the torch build. A frozen tower needs only this part.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blip_diffusion.pickles import read_pickle


@dataclass(frozen=True)
class Stage:
    """Shape of a sequence of inverted residual blocks."""

    repeats: int
    kernel: int
    stride: int
    expand: int
    width: int


LITE0 = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
LITE2 = (  # width 1.1, depth 1.2
    Stage(1, 3, 1, 1, 16),
    Stage(3, 3, 2, 6, 24),
    Stage(3, 5, 2, 6, 48),
    Stage(4, 3, 2, 6, 88),
    Stage(4, 5, 1, 6, 120),
    Stage(5, 5, 2, 6, 208),
    Stage(1, 3, 1, 6, 352),
)
STEM_WIDTH = 32
HEAD_WIDTH = 1280


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow's SAME does: the odd pixel goes to the right and below."""

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        pads = []
        for size in (x.shape[-1], x.shape[-2]):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(F.pad(x, pads) if any(pads) else x)


class Block(nn.Module):
    """Inverted residual: expand, depthwise convolution, project; added to the input where the shapes are equal."""

    def __init__(self, width_in: int, stage: Stage, stride: int) -> None:
        super().__init__()
        inner = width_in * stage.expand
        self.expand = nn.Conv2d(width_in, inner, 1) if stage.expand > 1 else nn.Identity()
        self.depthwise = SameConv(inner, inner, stage.kernel, stride, groups=inner)
        self.project = nn.Conv2d(inner, stage.width, 1)
        self.residual = stride == 1 and width_in == stage.width

    def forward(self, x: Tensor) -> Tensor:
        hidden = x if isinstance(self.expand, nn.Identity) else F.relu6(self.expand(x))
        hidden = self.project(F.relu6(self.depthwise(hidden)))
        return x + hidden if self.residual else hidden


class EfficientNetLite(nn.Module):
    """Pixels (B, 3, H, W), normalised as `(x - 127) / 128`, to block outputs; `last_block` is the last one built."""

    def __init__(self, stages: tuple[Stage, ...] = LITE0, *, last_block: int | None = None, head: bool = False) -> None:
        super().__init__()
        self.stem = SameConv(3, STEM_WIDTH, 3, 2)
        blocks, width = [], STEM_WIDTH
        for stage in stages:
            for repeat in range(stage.repeats):
                blocks.append(Block(width, stage, stage.stride if repeat == 0 else 1))
                width = stage.width
        self.blocks = nn.ModuleList(blocks if last_block is None else blocks[: last_block + 1])
        self.head = nn.Conv2d(width, HEAD_WIDTH, 1) if head else None

    def forward(self, pixels: Tensor, taps: tuple[int, ...]) -> list[Tensor]:
        """Return the outputs of the blocks in `taps` (increasing); -1 selects the head, whose output comes last."""
        x, outputs = F.relu6(self.stem(pixels)), []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in taps:
                outputs.append(x)
        if -1 in taps:
            if self.head is None:
                raise ValueError("this EfficientNetLite was built without its head")
            outputs.append(F.relu6(self.head(x)))
        return outputs


def read_weights(path: Path, network: EfficientNetLite) -> EfficientNetLite:
    """Load the published `.pth` (of `efficientnet-lite-pytorch`), with batch norms folded into convolutions."""
    published = read_pickle(path)
    convolutions = {"stem": ("_conv_stem", "_bn0")}
    for i, block in enumerate(network.blocks):
        assert isinstance(block, Block)
        names = {"depthwise": ("_depthwise_conv", "_bn1"), "project": ("_project_conv", "_bn2")}
        if not isinstance(block.expand, nn.Identity):
            names["expand"] = ("_expand_conv", "_bn0")
        convolutions |= {f"blocks.{i}.{k}": (f"_blocks.{i}.{c}", f"_blocks.{i}.{n}") for k, (c, n) in names.items()}
    if network.head is not None:
        convolutions["head"] = ("_conv_head", "_bn1")
    state: dict[str, Tensor] = {}
    for ours, (convolution, norm) in convolutions.items():
        state[f"{ours}.weight"], state[f"{ours}.bias"] = _fold(published, convolution, norm)
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)


def _fold(state: Mapping[str, Tensor], convolution: str, norm: str, eps: float = 1e-3) -> tuple[Tensor, Tensor]:
    scale = state[f"{norm}.weight"] / torch.sqrt(state[f"{norm}.running_var"] + eps)
    bias = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale
    return state[f"{convolution}.weight"] * scale[:, None, None, None], bias
