import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from blip_diffusion.errors import CheckpointError
from blip_diffusion.modules.lpips import LINEAR, STAGES, VGG, Lpips, read_lpips

POOL = "pool"
LAYOUT = [64, 64, POOL, 128, 128, POOL, 256, 256, 256, POOL, 512, 512, 512, POOL, 512, 512, 512, POOL]


def vgg16() -> nn.Sequential:
    """torchvision's `features`, in its own numbering."""
    layers: list[nn.Module] = []
    width = 3
    for entry in LAYOUT:
        if isinstance(entry, str):
            layers.append(nn.MaxPool2d(2, 2))
        else:
            layers += [nn.Conv2d(width, entry, 3, padding=1), nn.ReLU(inplace=True)]
            width = entry
    return nn.Sequential(*layers)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two files, of random weights, with what else they hold."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("lpips")
    features = {f"features.{name}": value for name, value in vgg16().state_dict().items()}
    torch.save({**features, "classifier.0.weight": torch.zeros(2, 2)}, folder / VGG)
    weights = {f"lin{i}.model.1.weight": torch.rand(1, stage[-1], 1, 1) for i, stage in enumerate(STAGES)}
    torch.save(weights, folder / LINEAR)
    return folder


def by_hand(folder: Path, a: Tensor, b: Tensor) -> Tensor:
    """The published code's steps, one image at a time."""
    network, linear = vgg16(), torch.load(folder / LINEAR)
    state = torch.load(folder / VGG)
    network.load_state_dict({name[9:]: value for name, value in state.items() if name.startswith("features.")})
    shift = torch.tensor([-0.030, -0.088, -0.188])[None, :, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450])[None, :, None, None]
    total = torch.zeros(())
    x, y = ((2 * pixels - 1 - shift) / scale for pixels in (a, b))
    for number, layer in enumerate(network):
        x, y = layer(x), layer(y)
        if number in (3, 8, 15, 22, 29):  # relu1_2, relu2_2, relu3_3, relu4_3, relu5_3
            unit = [z / (z.square().sum(1, keepdim=True).sqrt() + 1e-10) for z in (x, y)]
            weight = linear[f"lin{(3, 8, 15, 22, 29).index(number)}.model.1.weight"]
            total = total + nn.functional.conv2d((unit[0] - unit[1]).square(), weight).mean()
    return total


@torch.no_grad()
def test_lpips_equals_the_published_distance(published: Path) -> None:
    a, b = torch.rand(2, 3, 32, 48), torch.rand(2, 3, 32, 48)
    distance = read_lpips(published)
    assert distance(a, b).item() == pytest.approx(by_hand(published, a, b).item(), rel=1e-5)
    assert distance(a, a).item() == 0


def test_gradient_reaches_only_the_prediction(published: Path) -> None:
    distance = read_lpips(published)
    prediction, expected = torch.rand(1, 3, 32, 32, requires_grad=True), torch.rand(1, 3, 32, 32, requires_grad=True)
    distance(prediction, expected).backward()
    assert prediction.grad is not None and prediction.grad.abs().max() > 0
    assert expected.grad is None and not any(p.requires_grad for p in distance.parameters())


def test_folder_without_lpips_weights_is_refused(published: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"{VGG} can't be read"):
        read_lpips(tmp_path)
    (tmp_path / VGG).write_bytes((published / VGG).read_bytes())
    for no_table in (b"<!DOCTYPE html>", pickle.dumps(print, protocol=2), pickle.dumps([1, 2], protocol=2)):
        (tmp_path / LINEAR).write_bytes(no_table)
        with pytest.raises(CheckpointError, match=f"{LINEAR} can't be read"):
            read_lpips(tmp_path)
    torch.save([1, 2], tmp_path / LINEAR)
    with pytest.raises(CheckpointError, match=f"{LINEAR} can't be read"):
        read_lpips(tmp_path)
    torch.save({"lin0.model.1.weight": torch.rand(1, 3, 1, 1)}, tmp_path / LINEAR)
    with pytest.raises(CheckpointError, match="doesn't hold LPIPS"):
        read_lpips(tmp_path)
    assert len(list(Lpips().parameters())) == 2 * 13 + 5
