"""The benchmark's report, and both of its sides (slow: it installs the peer's packages)."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return script("bench", monkeypatch)


@pytest.mark.parametrize("name", [path.stem for path in sorted(FOLDER.glob("*.py"))])
def test_every_script_can_be_imported(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    script(name, monkeypatch)


def report(stock: list[float], exact: list[float]) -> dict[str, object]:
    rounds = {
        "peer, as it comes": [{"seconds": s, "cpu": 2 * s, "call_seconds": s / 10, "peak": 3.0} for s in stock],
        "ours, exact": [{"computed_seconds": s, "computed_cpu": s, "call_seconds": s / 10, "peak": 1.0} for s in exact],
    }
    return {
        "machine": {"cpu": "a CPU", "cores": 2, "torch": "2", "time": "today", "load_before": [0.1, 0, 0]},
        "threads": 1, "ceiling": {"float32": 100.0, "bfloat16": 200.0}, "load_after": [0.2, 0, 0],
        "sizes": {"mini": {"gflop": 40.0, "rounds": rounds}},
    }  # fmt: skip


def test_ratios_use_the_same_round(bench: ModuleType) -> None:
    """The machine was busy in the second round, so only ratios within a round are correct."""
    text = bench.markdown(report(stock=[4.0, 40.0, 8.0], exact=[2.0, 10.0, 4.0]))
    stock, exact = (line for line in text.splitlines() if line.startswith(("| peer", "| ours")))
    assert "| 8.00 [4.00, 40.00] | 1.00 [1.00, 1.00] |" in stock
    assert "| 4.00 [2.00, 10.00] | 2.00 [2.00, 4.00] | 4.00 [4.00, 8.00] |" in exact
    assert "| 0.400 [0.200, 1.000] | 100 | 1.00 |" in exact  # 40 GFLOP in 0.4 s


def test_report_compares_with_an_earlier_run(bench: ModuleType) -> None:
    earlier = json.loads(json.dumps(report(stock=[4.0], exact=[3.0])))
    text = bench.markdown(report(stock=[4.0], exact=[2.0]), earlier)
    assert "earlier run" in text and "1.50 x |" in text and "1.00 x |" in text


def test_presets_are_written_in_full(bench: ModuleType) -> None:
    from blip_diffusion.pipelines.presets import Preset

    for contender in bench.CONTENDERS:
        if contender.kind == "ours":
            assert isinstance(Preset(**bench.choices(contender, Path("model"))), Preset)
    assert bench.choices(bench.CONTENDERS[3], Path("model"))["engine"] == "openvino"
    assert bench.choices(bench.CONTENDERS[-1], Path("model"))["tiny_vae"] == str(Path("model", "tiny_vae"))


@pytest.mark.slow
@pytest.mark.network
def test_both_sides_generate_images(bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["bench.py", "--out", str(tmp_path), "--rounds", "1", "--only", "as it comes", "exact"]
    monkeypatch.setattr(sys, "argv", command)
    bench.main()
    rounds = json.loads((tmp_path / "bench.json").read_text())["sizes"]["mini"]["rounds"]
    assert {"peer, as it comes", "ours, exact"} <= rounds.keys()
    assert all(row["seconds"] > 0 for rows in rounds.values() for row in rows)


def test_the_outcomes_of_two_subjects(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    names = torch.tensor([[1, 2], [2, 1], [1, 1], [2, 2], [1, 5], [5, 5]])
    columns = script("two_subjects", monkeypatch).outcomes(names, torch.tensor([[1, 2]] * 6))
    assert columns.sum(dim=1).tolist() == [1, 1, 2, 2]
    assert columns.argmax(dim=0).tolist() == [0, 1, 2, 2, 3, 3]
