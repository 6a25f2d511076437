"""The architecture: imports point down only, importing has no effect, private names have one owner."""

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import blip_diffusion

PACKAGE = Path(blip_diffusion.__file__).parent
LEAVES = {
    "argument_checks",
    "errors",
    "escaping",
    "config",
    "control_characters",
    "devices",
    "edges",
    "fileio",
    "framing",
    "images",
    "nn_utils",
    "pickles",
    "plots",
    "prompts",
    "protocols",
    "strict_json",
}
NETWORKS = LEAVES | {"modules", "diffusion"}
MODEL = NETWORKS | {"model", "blip2", "checkpoint"}
TRAINER = {
    "config",
    "trainer",
    "run",
    "run_checkpoints",
    "step",
    "optim",
    "ema",
    "checkpointing",
    "metric_logger",
    "objective",
    "lora",
    "prefetch",
    "worker_batches",
    "signals",
}
SERVER = importlib.util.find_spec("dbos") and importlib.util.find_spec("fastapi")
"""Whether the packages of the extra `server` are there."""
SERVICE = {"edits", "errors", "events", "jobs", "job_service", "settings", "store"}
MAY_IMPORT = {
    "argument_checks": {"control_characters", "errors"},
    "errors": {"escaping"},
    "escaping": set(),
    "optional_packages": {"errors"},
    "config": {"control_characters", "errors"},
    "control_characters": {"errors", "escaping"},
    "devices": {"errors"},
    "edges": set(),
    "fileio": {"control_characters", "errors"},
    "nn_utils": set(),
    "pickles": {"errors", "nn_utils"},
    "protocols": set(),
    "strict_json": set(),
    "framing": {"errors"},
    "images": {"errors", "fileio"},
    "prompts": {"errors", "protocols"},
    "plots": set(),
    "ray_pool": {"errors", "optional_packages"},
    "annotators": {"edges", "errors", "images"},
    "openvino_backend": {"errors", "fileio", "nn_utils"},
    "modules": {"errors", "pickles", "protocols"},
    "diffusion": {"errors", "protocols"},
    "data": LEAVES | {"ray_pool"},
    "model": NETWORKS,
    "blip2": NETWORKS | {"model"},
    "checkpoint": NETWORKS | {"model", "blip2"},
    "sampling": NETWORKS | {"model"},
    "references": NETWORKS | {"model"},
    "pipelines": MODEL | {"openvino_backend", "optional_packages", "references", "sampling"},
    "training": MODEL | {"data", "ray_pool", "references", "sampling"},
    "evaluation": MODEL | {"data", "pipelines", "ray_pool", "references", "sampling", "training"},
    "generation": MODEL | {"annotators", "pipelines", "ray_pool", "references", "sampling"},
    "comfy": MODEL | {"annotators", "generation", "pipelines"},
    "serving": MODEL | {"annotators", "generation", "pipelines", "references"},
    "cli": MODEL
    | {"annotators", "data", "generation", "optional_packages", "pipelines", "serving", "training", "evaluation"},
}
"""What each part may import beside itself: siblings (modules and diffusion, pipelines and training) not each other."""


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in it, `from package import module` included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_parts(path: Path) -> set[str]:
    """The parts of this package that a file imports."""
    names = [name.split(".") for name in imports(path) if name.startswith("blip_diffusion.")]
    return {parts[1] for parts in names if (PACKAGE / parts[1]).is_dir() or (PACKAGE / f"{parts[1]}.py").is_file()}


def files(part: str) -> list[Path]:
    return [PACKAGE / f"{part}.py"] if (PACKAGE / f"{part}.py").is_file() else sorted((PACKAGE / part).rglob("*.py"))


def mentioning(word: str) -> list[str]:
    return sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if word in path.read_text())


def test_every_module_has_a_layer() -> None:
    result = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert result - {"__init__", "__main__"} == set(MAY_IMPORT)


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_imports_point_down(part: str) -> None:
    for path in files(part):
        assert own_parts(path) <= MAY_IMPORT[part] | {part}, path


@pytest.mark.parametrize(
    ("word", "owners"),
    [
        (
            "scaling_factor",
            ["diffusion/latents.py", "modules/pixel_autoencoder.py", "training/objectives/autoencoder.py"],
        ),  # the second has it in its configuration, the third measures it
        ("transformers.models", []),
        ("transformers.masking_utils", ["modules/text_encoder.py"]),
    ],
)
def test_private_names_have_one_owner(word: str, owners: list[str]) -> None:
    assert mentioning(word) == owners


def calls(path: Path, name: str) -> bool:
    """Whether a file calls a function by its name, such as `Image.open`."""
    functions = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return any(ast.unparse(function) == name for function in functions)


@pytest.mark.parametrize(
    ("function", "owner"),
    [
        ("Image.open", "images.py"),  # it starts Ghostscript where the formats aren't named
        ("json.loads", "strict_json.py"),  # it keeps the last value of a key that is given twice
        ("print", "control_characters.py"),  # it prints terminal escapes
    ],
)
def test_untrusted_input_and_output_have_one_place(function: str, owner: str) -> None:
    assert [path.name for path in PACKAGE.rglob("*.py") if calls(path, function)] == [owner]


def test_trainer_imports_no_objective_and_no_model() -> None:
    for name in TRAINER - {"lora"}:
        path = PACKAGE / "training" / f"{name}.py"
        allowed = {
            "config",
            "control_characters",
            "devices",
            "errors",
            "escaping",
            "fileio",
            "nn_utils",
            "pickles",
            "strict_json",
            "training",
        }
        assert own_parts(path) <= allowed, path
        assert not [module for module in imports(path) if "training.objectives" in module or "diffusers" in module], (
            path
        )


WITHIN = {
    "data": {
        "batches": set(),
        "package_files": set(),
        "photos": {"captioned"},
        "segmentation": {"package_files", "photos"},
        "synthetic": {"batches"},
        "captioned": {"batches"},
        "build": {"synthetic", "benchmarks"},
        "benchmarks": {"synthetic"},
    },
    "serving": {
        "store": {"errors"},
        "events": set(),
        "messages": set(),
        "worker": {"messages"},
        "pool": {"errors", "messages", "worker"},
        "http": SERVICE,
        "page": SERVICE | {"http"},
    },
    "training": {
        "objectives": TRAINER | {"sample_callback", "text_dropout"},
        "personalize": TRAINER | {"initialization", "objectives"},
        "recipe": TRAINER | {"initialization", "objectives"},
    },
}
"""What the parts of a part may import of their siblings; parts that aren't named may import no sub-package."""


@pytest.mark.parametrize(("part", "inner"), [(part, inner) for part, table in WITHIN.items() for inner in table])
def test_imports_point_down_within_a_package(part: str, inner: str) -> None:
    start = f"blip_diffusion.{part}."
    for path in files(f"{part}/{inner}"):
        siblings = {name.removeprefix(start).split(".")[0] for name in imports(path) if name.startswith(start)}
        assert siblings <= WITHIN[part][inner] | {inner}, path


def test_objectives_do_not_import_each_other() -> None:
    objectives = {path.stem for path in (PACKAGE / "training/objectives").glob("*.py")} - {"masked_denoising_loss"}
    for name in objectives:
        others = {f"blip_diffusion.training.objectives.{other}" for other in objectives - {name}}
        result = list(imports(PACKAGE / "training/objectives" / f"{name}.py"))
        assert not [module for module in result if module.rpartition(".")[0] in others], name


def test_init_files_contain_no_code() -> None:
    for path in PACKAGE.rglob("__init__.py"):
        if path.parent != PACKAGE:
            body = ast.parse(path.read_text()).body
            assert all(isinstance(node, ast.Expr) for node in body), path


def test_every_module_has_a_docstring() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), path


def python(code: str, where: Path) -> str:
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=where, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == "" and list(where.iterdir()) == []
    return ended.stdout


def test_importing_the_package_is_light(tmp_path: Path) -> None:
    heavy = "torch", "diffusers", "transformers", "numpy", "PIL", "accelerate"
    code = f"import blip_diffusion, blip_diffusion.cli.main, sys; print([n for n in {heavy} if n in sys.modules])"
    assert python(code, tmp_path) == "[]\n"


def test_importing_every_module_does_nothing(tmp_path: Path) -> None:
    """Nothing printed, nothing written, no chance taken, no thread count or default changed."""
    names = [
        ".".join(("blip_diffusion", *path.relative_to(PACKAGE).with_suffix("").parts))
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.name != "__init__.py"
        and not {"page", *([] if SERVER else ["serving"])} & set(path.parts)
        and not path.name.endswith("_nodes.py")  # ComfyUI's
    ]
    code = f"""
import importlib, random, warnings, torch, diffusers, transformers
def state():
    return (random.getstate(), torch.get_rng_state().sum().item(), torch.get_num_threads(), torch.get_default_dtype(),
            torch.is_grad_enabled(), torch.backends.cuda.flash_sdp_enabled())
before = state()
for name in {names}:
    importlib.import_module(name)
assert state() == before
"""
    assert python(code, tmp_path) == ""


@pytest.mark.skipif(not SERVER, reason="needs the packages of the extra server")
def test_server_does_not_import_torch(tmp_path: Path) -> None:
    """Only worker processes import torch, so that the server starts fast and needs little memory."""
    names = [
        ".".join(("blip_diffusion", *path.relative_to(PACKAGE).with_suffix("").parts))
        for path in files("serving")
        if path.name not in ("__init__.py", "worker.py") and "page" not in path.parts
    ]
    code = f"import importlib, sys; [importlib.import_module(name) for name in {names}]; print('torch' in sys.modules)"
    assert python(code, tmp_path) == "False\n"
