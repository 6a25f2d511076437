import json
import signal
import threading
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
from blip_diffusion.errors import CheckpointError, ConfigError
from blip_diffusion.training import checkpointing
from blip_diffusion.training.config import TrainConfig
from blip_diffusion.training.optim import OptimConfig, learning_rate
from blip_diffusion.training.run import DivergedError
from blip_diffusion.training.trainer import HookContext, fit

from .conftest import Launch
from .toys import ROWS, Contrast, Regression, batches, train

TIMES = ("seconds", "samples_per_second", "eta")
CONFIG: dict[str, Any] = {
    "steps": 6,
    "gradient_accumulation_steps": 2,
    "log_every": 4,
    "save_every": 100,
    "device": "cpu",
    "prefetch": 0,
    "optim": {"lr": 0.01, "schedule": "cosine", "warmup": 2},
}


def log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a log, without what depends on the clock."""
    found = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in found]


def assert_same_end(first: Path, second: Path, step: int) -> None:
    """Parameters, buffers, average, moments and log, bit for bit."""
    one, other = (checkpointing.load(folder / "checkpoints" / checkpointing.name(step)) for folder in (first, second))
    for left, right in ((one.model, other.model), (one.ema, other.ema)):
        assert left.keys() == right.keys()
        assert all(torch.equal(value, right[name]) for name, value in left.items())
    left, right = one.optimizer["moments"], other.optimizer["moments"]
    assert left.keys() == right.keys()
    assert all(torch.equal(value, right[name][kind]) for name in left for kind, value in left[name].items())
    assert one.state.samples == other.state.samples and one.state.windows == other.state.windows
    assert log(first) == log(second)


# ---------------------------------------------------------------------------------------------------------- what it is


def test_it_is_adamw_on_the_mean_of_the_micro_batches(tmp_path: Path) -> None:
    """The loop against ten plain lines."""
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
    assert [line["gradient_norm"] for line in log(tmp_path)] == pytest.approx(norms, abs=1e-5)
    assert min(norms) < 1.2 < max(norms)  # some were clipped and some were not


class Contrast1(Contrast):
    """Without negatives from elsewhere."""

    def loss(self, batch: Any) -> torch.Tensor:
        logits = self.left(batch["x"]) @ self.right(batch["y"]).T
        return nn.functional.cross_entropy(logits, torch.arange(ROWS))

    def forward(self, batch: Any, context: Any) -> dict[str, torch.Tensor]:
        return {"loss": self.loss(batch)}

    def gather_step_context(self, *_: Any) -> None:
        return None


def test_it_learns_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = TrainConfig(
        steps=60, gradient_accumulation_steps=2, log_every=20, device="cpu", optim=OptimConfig(lr=0.03)
    )
    result = fit(Contrast(), batches, config, folder=tmp_path, config_text=to_toml(config))
    lines = log(tmp_path)
    assert [line["step"] for line in lines] == [20, 40, 60]
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]
    assert result.step == 60 and result.samples == 60 * 2 * ROWS and result.stopped == "done"
    assert result.losses["loss"] == lines[-1]["loss"] and result.seconds > 0
    assert capsys.readouterr().out.startswith("20/60  loss ")
    newest = checkpointing.load(tmp_path / "checkpoints" / "step-00000060")
    assert newest.state.best == min(line["loss"] for line in lines)
    assert build(TrainConfig, tomllib.loads(newest.config)) == config


def test_the_average_is_exported_and_the_weights_stay(tmp_path: Path) -> None:
    method = Regression()
    fit(method, batches, TrainConfig(steps=5, device="cpu", ema_decay=0.9), folder=tmp_path)
    exported = torch.load(tmp_path / "export" / "net.pt", weights_only=True)
    saved = tmp_path / "checkpoints" / "step-00000005"
    raw, average = load_file(saved / "model.safetensors"), load_file(saved / "ema.safetensors")
    assert torch.equal(exported["0.weight"], average["net.0.weight"])
    assert not torch.equal(exported["0.weight"], raw["net.0.weight"])
    assert torch.equal(method.net[0].weight, raw["net.0.weight"]) and method.training


def test_what_is_frozen_keeps_its_dtype_and_is_not_saved(tmp_path: Path) -> None:
    method = Regression()
    before = method.frozen.weight.detach().clone()
    fit(method, batches, TrainConfig(steps=3, device="cpu"), folder=tmp_path)
    assert method.frozen.weight.dtype == torch.float64 and torch.equal(method.frozen.weight, before)
    saved = load_file(tmp_path / "checkpoints" / "step-00000003" / "model.safetensors")
    assert set(saved) == {"net.0.weight", "net.0.bias", "net.3.weight", "net.3.bias", "seen"}
    assert saved["seen"].item() == 3 * ROWS


def test_every_index_is_asked_for_once_and_in_order_and_the_caller_finds_errors(tmp_path: Path) -> None:
    for prefetch in (0, 1, 5):
        asked: list[int] = []

        def watched(index: int, asked: list[int] = asked) -> Any:
            asked.append(index)
            return batches(index)

        config = TrainConfig(steps=4, gradient_accumulation_steps=3, device="cpu", prefetch=prefetch)
        fit(Regression(), watched, config, folder=tmp_path / str(prefetch))
        assert asked == list(range(12))
    assert_same_end(tmp_path / "0", tmp_path / "5", 4)

    def broken(index: int) -> Any:
        raise KeyError("no such image")

    with pytest.raises(KeyError, match="no such image"):
        fit(Regression(), broken, TrainConfig(steps=4, device="cpu"), folder=tmp_path / "broken")


def test_chance_is_a_function_of_seed_and_index(tmp_path: Path) -> None:
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
    everything = [tuple(part) for found in seen.values() for part in (found[0][:3], found[0][3:])]
    assert len(set(everything)) == len(everything) == 16  # the two generators differ too


def test_bf16_twice_with_one_method(tmp_path: Path) -> None:
    """Accelerate marks what it has prepared; the marks must go, or the second run is silently in float32."""
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


# ---------------------------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, stop: int) -> None:
    train({"folder": tmp_path / "whole", "config": CONFIG})
    order = {"folder": tmp_path / "parts", "config": CONFIG}
    first = train({**order, "signals": {2 * stop - 1: signal.SIGTERM}})
    assert (first.stopped, first.step) == ("signal", stop)
    assert not (tmp_path / "parts" / "export").exists()
    second = train({**order, "resume": "latest"})
    assert (second.stopped, second.step, second.samples) == ("done", 6, 6 * 2 * ROWS)
    assert_same_end(tmp_path / "whole", tmp_path / "parts", 6)
    one, other = (torch.load(tmp_path / name / "export" / "net.pt", weights_only=True) for name in ("whole", "parts"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_kill_9_costs_only_the_steps_since_the_last_checkpoint(tmp_path: Path, launch: Launch) -> None:
    config = {**CONFIG, "save_every": 2, "log_every": 1, "prefetch": 2}
    train({"folder": tmp_path / "whole", "config": config})
    order = {"folder": str(tmp_path / "parts"), "config": config}
    killed = launch({**order, "signals": {9: signal.SIGKILL}})  # while step 2 or 3 is under way
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    saved = tmp_path / "parts" / "checkpoints"
    assert checkpointing.latest(saved) == saved / "step-00000002"
    result = train({**order, "resume": True})
    assert result.step == 6
    assert_same_end(tmp_path / "whole", tmp_path / "parts", 6)


def test_resuming_from_an_earlier_checkpoint_puts_the_later_ones_aside(tmp_path: Path) -> None:
    config = {**CONFIG, "save_every": 2, "keep_last": 9}
    order = {"folder": tmp_path, "config": config}
    train(order)
    expected = load_file(tmp_path / "checkpoints" / "step-00000006" / "model.safetensors")
    result = train({**order, "resume": str(tmp_path / "checkpoints" / "step-00000002")})
    assert result.step == 6
    again = load_file(tmp_path / "checkpoints" / "step-00000006" / "model.safetensors")
    assert all(torch.equal(value, again[name]) for name, value in expected.items())
    assert (tmp_path / "checkpoints" / "superseded-step-00000006").exists()
    assert [line["step"] for line in log(tmp_path)] == [4, 6]


def test_a_run_whose_checkpoints_are_all_damaged_is_not_started_over(tmp_path: Path) -> None:
    order = {"folder": tmp_path, "config": {**CONFIG, "keep_last": 1}}
    train(order)
    (tmp_path / "checkpoints" / "step-00000006" / "state.json").unlink()
    with pytest.raises(CheckpointError, match="already holds a run"):
        train(order)
    with pytest.raises(CheckpointError, match=r"state\.json is damaged.* There is no other"):
        train({**order, "resume": True})


def test_a_damaged_checkpoint_costs_no_more_than_itself(tmp_path: Path) -> None:
    order = {"folder": tmp_path, "config": {**CONFIG, "save_every": 2}}
    train(order)
    (tmp_path / "checkpoints" / "step-00000006" / "optimizer.pt").write_bytes(b"nonsense")
    with pytest.warns(UserWarning, match=r"optimizer\.pt changed.* continues from step-00000004"):
        assert train({**order, "resume": "latest"}).step == 6
    assert checkpointing.latest(tmp_path / "checkpoints") == tmp_path / "checkpoints" / "step-00000006"


def test_resuming_where_nothing_is_starts(tmp_path: Path) -> None:
    assert train({"folder": tmp_path, "config": CONFIG, "resume": "latest"}).step == 6


def test_resuming_what_is_done_changes_nothing(tmp_path: Path) -> None:
    order = {"folder": tmp_path, "config": CONFIG}
    first = train(order)
    before = (tmp_path / "log.jsonl").read_text()
    second = train({**order, "resume": True})
    assert second == first and (tmp_path / "log.jsonl").read_text() == before


def test_a_run_is_not_started_over_another(tmp_path: Path) -> None:
    order = {"folder": tmp_path, "config": CONFIG}
    train(order)
    before = (tmp_path / "log.jsonl").read_text()
    with pytest.raises(CheckpointError, match="already holds a run, up to step-00000006; resume it"):
        train(order)
    assert (tmp_path / "log.jsonl").read_text() == before


def test_a_checkpoint_of_another_method_is_refused_with_a_list(tmp_path: Path) -> None:
    order = {"folder": tmp_path, "config": CONFIG}
    train(order)
    with pytest.raises(CheckpointError, match=r"left\.weight is missing.*net\.0\.weight is unexpected.* and 2 more"):
        train({**order, "objective": "contrast", "resume": True})


def test_a_run_that_resumes_without_an_average_goes_on_from_the_weights(tmp_path: Path) -> None:
    order = {"folder": tmp_path, "config": {**CONFIG, "ema_decay": 0.9}}
    train(order)
    raw = load_file(tmp_path / "checkpoints" / "step-00000006" / "model.safetensors")
    train({**order, "config": {**CONFIG, "ema_decay": 0.0}, "resume": True})
    exported = torch.load(tmp_path / "export" / "net.pt", weights_only=True)
    assert all(torch.equal(value, raw[f"net.{name}"]) for name, value in exported.items())


def test_resuming_takes_the_new_configuration(tmp_path: Path) -> None:
    order = {"folder": tmp_path, "config": {**CONFIG, "log_every": 1}}
    train(order)
    changed = {**CONFIG, "log_every": 1, "steps": 8, "optim": {"lr": 0.5}}
    train({**order, "config": changed, "resume": True})
    assert [line["lr"] for line in log(tmp_path)][-2:] == [0.5, 0.5]


# ---------------------------------------------------------------------------------------------------------- stopping


def test_minutes_stop_in_time_and_save_and_export(tmp_path: Path) -> None:
    def slow(index: int) -> Any:
        time.sleep(0.1)
        return batches(index)

    config = TrainConfig(steps=1000, minutes=2 / 60, device="cpu", log_every=7)
    result = fit(Regression(), slow, config, folder=tmp_path)
    assert result.stopped == "minutes" and 1 <= result.step < 20
    assert result.seconds < 2.5  # the limit, and room for a machine that others use
    latest = checkpointing.latest(tmp_path / "checkpoints")
    assert latest is not None and latest.name == checkpointing.name(result.step)
    assert (tmp_path / "export" / "net.pt").exists() and result.losses["loss"] > 0


def test_hooks_are_passed_over_where_minutes_leave_no_time_for_them(tmp_path: Path) -> None:
    seen: list[int] = []

    def slow(context: HookContext) -> None:
        seen.append(context.step)
        time.sleep(1.8)

    def paced(index: int) -> Any:
        time.sleep(0.02)
        return batches(index)

    config = TrainConfig(steps=1000, minutes=3 / 60, device="cpu", sample_every=1)
    result = fit(Regression(), paced, config, folder=tmp_path, hooks=[slow])
    assert seen == [1] and result.step > 1 and result.stopped == "minutes"


def test_minutes_do_not_change_the_schedule(tmp_path: Path) -> None:
    config = {**CONFIG, "minutes": 1e-6}
    for step in range(1, 7):
        assert train({"folder": tmp_path / "parts", "config": config, "resume": True}).step == step
    train({"folder": tmp_path / "whole", "config": CONFIG})
    assert_same_end(tmp_path / "whole", tmp_path / "parts", 6)


def test_minutes_between_checkpoints(tmp_path: Path) -> None:
    config = TrainConfig(steps=3, save_minutes=1e-9, save_every=100, keep_last=9, device="cpu")
    fit(Regression(), batches, config, folder=tmp_path)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_step_saves_and_leaves_cleanly(tmp_path: Path, launch: Launch, number: int) -> None:
    order = {"folder": str(tmp_path), "config": {**CONFIG, "steps": 50}, "signals": {7: number}}
    ended = launch(order)
    assert ended.returncode == 0, ended.stderr
    assert "stopped: signal at 4" in ended.stdout
    assert checkpointing.latest(tmp_path / "checkpoints") == tmp_path / "checkpoints" / "step-00000004"


def test_signal_handlers_are_given_back_and_a_thread_may_train(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(train({"folder": tmp_path, "config": CONFIG})))
    thread.start()
    thread.join()
    assert results[0].step == 6
    train({"folder": tmp_path, "config": {**CONFIG, "steps": 8}, "resume": True})
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_loss_that_is_no_number_stops_before_the_step(tmp_path: Path) -> None:
    order = {"folder": tmp_path, "config": {**CONFIG, "save_every": 2}, "arguments": {"poison": 5, "where": 1}}
    with pytest.raises(DivergedError, match=r"Step 5 was not taken.*loss nan.*last checkpoint is step-00000004"):
        train(order)
    whole = train({"folder": tmp_path / "whole", "config": {**CONFIG, "save_every": 2}})
    assert train({**order, "resume": True, "arguments": {}}).step == whole.step
    assert_same_end(tmp_path / "whole", tmp_path, 6)


def test_a_gradient_that_is_no_number_stops_too_and_the_weights_are_untouched(tmp_path: Path) -> None:
    class Steep(Regression):
        def forward(self, batch: Any, context: Any) -> Any:
            losses = super().forward(batch, context)
            return {"loss": losses["loss"] + (self.net[0].weight * 0).abs().sqrt().sum()}  # 0, but its slope is nan

    method = Steep()
    before = [parameter.detach().clone() for parameter in method.parameters()]
    with pytest.raises(DivergedError, match=r"Step 0 .*gradient norm nan; there is no checkpoint yet"):
        fit(method, batches, TrainConfig(steps=3, device="cpu"), folder=tmp_path)
    assert all(torch.equal(one, other) for one, other in zip(before, method.parameters(), strict=True))


def test_spoilt_weights_are_not_saved(tmp_path: Path) -> None:
    config = TrainConfig(steps=3, save_every=1, device="cpu", optim=OptimConfig(lr=3e38))
    method = Regression()
    with torch.no_grad():
        method.net[0].weight.fill_(-1e38)
    with pytest.raises(DivergedError):
        fit(method, batches, config, folder=tmp_path)
    newest = checkpointing.latest(tmp_path / "checkpoints")
    assert newest is None or all(value.isfinite().all() for value in checkpointing.load(newest).model.values())


# ---------------------------------------------------------------------------------------------------------- hooks


def test_hooks_see_the_average_in_eval_mode_and_leave_no_trace(tmp_path: Path) -> None:
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
    assert [line for line in log(tmp_path / "hooked") if "judge" not in line] == log(tmp_path / "plain")
    saved = [tmp_path / name / "checkpoints" / "step-00000006" / "model.safetensors" for name in ("hooked", "plain")]
    assert saved[0].read_bytes() == saved[1].read_bytes()


def test_the_time_of_hooks_is_not_counted(tmp_path: Path) -> None:
    config = TrainConfig(steps=2, sample_every=1, device="cpu")
    result = fit(Regression(), batches, config, folder=tmp_path, hooks=[lambda _: time.sleep(1.0)])
    assert result.seconds < 1.5


# ---------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"steps": 0}, "steps must be at least 1, not 0."),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps must be at least 1, not 0."),
        ({"keep_last": 0}, "keep_last must be at least 1, not 0."),
        ({"minutes": 0.0}, "minutes must be positive, not 0.0."),
        ({"ema_decay": 1.0}, r"ema_decay must lie in \[0, 1\), not 1.0."),
        ({"prefetch": -1}, "prefetch must not be negative, but is -1."),
    ],
)
def test_values_out_of_range(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        TrainConfig(**values)


@pytest.mark.parametrize(("able", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_is_what_the_processor_computes_in(
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
def test_it_runs_and_resumes_on_a_gpu(tmp_path: Path, precision: str) -> None:
    config = {**CONFIG, "device": "auto", "mixed_precision": precision, "prefetch": 2}
    order: dict[str, Any] = {"folder": tmp_path, "objective": "contrast", "config": config}
    first = train({**order, "config": {**config, "minutes": 1e-6}})
    assert first.step == 1
    assert train({**order, "resume": True}).step == 6
