"""The training loop: steps, precision, EMA, hooks and configuration values."""

import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from blip_diffusion.config import build, to_toml
from blip_diffusion.errors import ConfigError
from blip_diffusion.training import checkpointing
from blip_diffusion.training.config import TrainConfig
from blip_diffusion.training.optim import OptimConfig, learning_rate
from blip_diffusion.training.trainer import HookContext, fit

from .runs import CONFIG, assert_same_end, read_log
from .toys import ROWS, Contrast, Regression, batches, train


def test_training_equals_a_plain_adamw_loop(tmp_path: Path) -> None:
    """The trainer equals a loop of ten lines."""
    config = TrainConfig(
        steps=5,
        gradient_accumulation_steps=2,
        log_every=1,
        device="cpu",
        optim=OptimConfig(lr=0.05, clip=1.2, weight_decay=0.1, warmup=3),
    )
    fit(Contrast1(), batches, config, folder=tmp_path)
    plain = Contrast1()
    decayed = [plain.left.weight, plain.right.weight]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": [plain.left.bias], "weight_decay": 0.0}]
    optimizer, norms = torch.optim.AdamW(groups), []
    for step in range(5):
        optimizer.zero_grad()
        (sum(plain.loss(batches(2 * step + a)) for a in range(2)) / 2).backward()
        norms.append(nn.utils.clip_grad_norm_(plain.parameters(), 1.2).item())
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config.optim, 5)
        optimizer.step()
    saved = load_file(tmp_path / "checkpoints" / "step-00000005" / "model.safetensors")
    for name, value in plain.named_parameters():
        torch.testing.assert_close(saved[name], value.detach(), atol=1e-6, rtol=0)
    assert [line["gradient_norm"] for line in read_log(tmp_path)] == pytest.approx(norms, abs=1e-5)
    assert min(norms) < 1.2 < max(norms)  # some were clipped and some were not


class Contrast1(Contrast):
    """The contrastive objective without shared negatives."""

    def loss(self, batch: Any) -> torch.Tensor:
        logits = self.left(batch["x"]) @ self.right(batch["y"]).T
        return nn.functional.cross_entropy(logits, torch.arange(ROWS))

    def forward(self, batch: Any, context: Any) -> dict[str, torch.Tensor]:
        return {"loss": self.loss(batch)}

    def gather_step_context(self, *_: Any) -> None:
        return None


def test_loss_decreases_and_is_logged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = TrainConfig(
        steps=60, gradient_accumulation_steps=2, log_every=20, device="cpu", optim=OptimConfig(lr=0.03)
    )
    result = fit(Contrast(), batches, config, folder=tmp_path, config_text=to_toml(config))
    lines = read_log(tmp_path)
    assert [line["step"] for line in lines] == [20, 40, 60]
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]
    assert result.step == 60 and result.samples == 60 * 2 * ROWS and result.stopped == "done"
    assert result.losses["loss"] == lines[-1]["loss"] and result.seconds > 0
    assert capsys.readouterr().out.startswith("20/60  loss ")
    newest = checkpointing.load(tmp_path / "checkpoints" / "step-00000060")
    assert newest.state.best == min(line["loss"] for line in lines)
    assert build(TrainConfig, tomllib.loads(newest.config)) == config


def test_export_contains_the_ema_weights(tmp_path: Path) -> None:
    method = Regression()
    fit(method, batches, TrainConfig(steps=5, device="cpu", ema_decay=0.9), folder=tmp_path)
    exported = torch.load(tmp_path / "export" / "net.pt", weights_only=True)
    saved = tmp_path / "checkpoints" / "step-00000005"
    raw, average = load_file(saved / "model.safetensors"), load_file(saved / "ema.safetensors")
    assert torch.equal(exported["0.weight"], average["net.0.weight"])
    assert not torch.equal(exported["0.weight"], raw["net.0.weight"])
    assert torch.equal(method.net[0].weight, raw["net.0.weight"]) and method.training


def test_frozen_weights_keep_their_dtype_and_are_not_saved(tmp_path: Path) -> None:
    method = Regression()
    before = method.frozen.weight.detach().clone()
    fit(method, batches, TrainConfig(steps=3, device="cpu"), folder=tmp_path)
    assert method.frozen.weight.dtype == torch.float64 and torch.equal(method.frozen.weight, before)
    saved = load_file(tmp_path / "checkpoints" / "step-00000003" / "model.safetensors")
    assert set(saved) == {"net.0.weight", "net.0.bias", "net.3.weight", "net.3.bias", "seen"}
    assert saved["seen"].item() == 3 * ROWS


def test_batches_are_requested_once_in_order_and_errors_propagate(tmp_path: Path) -> None:
    for prefetch in (0, 1, 5):
        requested: list[int] = []

        def watched(index: int, requested: list[int] = requested) -> Any:
            requested.append(index)
            return batches(index)

        config = TrainConfig(steps=4, gradient_accumulation_steps=3, device="cpu", prefetch=prefetch)
        fit(Regression(), watched, config, folder=tmp_path / str(prefetch))
        assert requested == list(range(12))
    assert_same_end(tmp_path / "0", tmp_path / "5", 4)

    def broken(index: int) -> Any:
        raise KeyError("no such image")

    with pytest.raises(KeyError, match="no such image"):
        fit(Regression(), broken, TrainConfig(steps=4, device="cpu"), folder=tmp_path / "broken")


def test_random_numbers_depend_on_seed_and_index_only(tmp_path: Path) -> None:
    seen: dict[tuple[int, int], list[Any]] = {}

    class Curious(Regression):
        def forward(self, batch: Any, context: Any) -> Any:
            noise = torch.randn(3, generator=context.rng), torch.randn(3)
            seen.setdefault((seed, context.step * gradient_accumulation_steps + context.position), []).append(
                torch.cat(noise).tolist()
            )
            return super().forward(batch, context)

    for run, (seed, gradient_accumulation_steps) in enumerate([(0, 1), (0, 2), (1, 2)]):
        torch.manual_seed(run)
        config = TrainConfig(
            steps=4 // gradient_accumulation_steps,
            gradient_accumulation_steps=gradient_accumulation_steps,
            seed=seed,
            device="cpu",
        )
        fit(Curious(), batches, config, folder=tmp_path / str(run))
    assert all(seen[0, index][0] == seen[0, index][1] for index in range(4))
    everything = [tuple(part) for results in seen.values() for part in (results[0][:3], results[0][3:])]
    assert len(set(everything)) == len(everything) == 16  # the two generators differ too


def test_mixed_precision_can_change_between_runs_of_an_objective(tmp_path: Path) -> None:
    """Accelerate marks prepared modules. Without removing the marks, the second run would silently use float32."""
    dtypes = []

    class Curious(Regression):
        def forward(self, batch: Any, context: Any) -> Any:
            dtypes.append(self.net[0](batch["x"]).dtype)
            return super().forward(batch, context)

    method = Curious()
    for run, precision in enumerate(("bf16", "no", "bf16")):
        config = TrainConfig(steps=1, device="cpu", mixed_precision=precision)
        fit(method, batches, config, folder=tmp_path / str(run))
    assert dtypes == [torch.bfloat16, torch.float32, torch.bfloat16]
    assert all(parameter.dtype == torch.float32 for parameter in method.net.parameters())


def test_hooks_run_with_ema_weights_in_eval_mode(tmp_path: Path) -> None:
    visits: list[int] = []

    def hook(context: HookContext) -> None:
        net = context.objective.net
        assert not context.objective.training and not torch.is_grad_enabled()
        average = net[0].weight.clone()
        with context.ema.swapped():
            assert not torch.equal(net[0].weight, average)
        torch.manual_seed(5)
        context.metric_logger.image("grey", Image.new("L", (2, 2)), context.step)
        context.metric_logger.log(context.step, {"judge": 0.5})
        visits.append(context.step)

    plain = {**CONFIG, "sample_every": 2}
    for name, hooks in (("hooked", [hook]), ("plain", [])):
        method = Regression()
        method.frozen.eval()
        fit(method, batches, build(TrainConfig, plain), folder=tmp_path / name, hooks=hooks)
    assert visits == [2, 4, 6]
    assert (tmp_path / "hooked" / "samples" / "grey-00000004.png").exists()
    assert [line for line in read_log(tmp_path / "hooked") if "judge" not in line] == read_log(tmp_path / "plain")
    saved = [tmp_path / name / "checkpoints" / "step-00000006" / "model.safetensors" for name in ("hooked", "plain")]
    assert saved[0].read_bytes() == saved[1].read_bytes()


def test_time_of_hooks_is_not_counted(tmp_path: Path) -> None:
    config = TrainConfig(steps=2, sample_every=1, device="cpu")
    result = fit(Regression(), batches, config, folder=tmp_path, hooks=[lambda _: time.sleep(1.0)])
    assert result.seconds < 1.5


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"steps": 0}, "steps must be at least 1, not 0."),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps must be at least 1, not 0."),
        ({"keep_last": 0}, "keep_last must be at least 1, not 0."),
        ({"minutes": 0.0}, "minutes must be positive and finite, not 0.0."),
        ({"ema_decay": 1.0}, r"ema_decay must lie in \[0, 1\), not 1.0."),
        ({"prefetch": -1}, "prefetch must not be negative, but is -1."),
    ],
)
def test_values_out_of_range(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        TrainConfig(**values)


@pytest.mark.parametrize(("able", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_precision_depends_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, able: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr("blip_diffusion.devices.has_bfloat16", lambda: able)
    dtypes = []

    class Curious(Regression):
        def forward(self, batch: Any, context: Any) -> Any:
            dtypes.append(self.net[0](batch["x"]).dtype)
            return super().forward(batch, context)

    fit(Curious(), batches, TrainConfig(steps=1, device="cpu", mixed_precision="auto"), folder=tmp_path)
    assert dtypes == [dtype]


def test_fp16_needs_a_gpu(tmp_path: Path) -> None:
    config = TrainConfig(steps=1, device="cpu", mixed_precision="fp16")
    with pytest.raises(ConfigError, match="needs a GPU"):
        fit(Regression(), batches, config, folder=tmp_path)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_run_resumes_on_a_gpu(tmp_path: Path, precision: str) -> None:
    config = {**CONFIG, "device": "auto", "mixed_precision": precision, "prefetch": 2}
    run: dict[str, Any] = {"folder": tmp_path, "objective": "contrast", "config": config}
    first = train({**run, "config": {**config, "minutes": 1e-6}})
    assert first.step == 1
    assert train({**run, "resume": True}).step == 6
