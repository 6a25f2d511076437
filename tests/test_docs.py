"""Documents are correct: links work, commands parse, named files and keys exist, and Python examples run."""

import ast
import importlib.util
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
CARD = ROOT / "src/blip_diffusion/assets/mini/README.md"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "examples/README.md")),
    CARD,
    *sorted(
        page
        for page in (ROOT / "docs").rglob("*.md")
        if page.name not in ("cli.md", "config.md") and page.parent.name != "notebooks"
    ),
]
CURRENT = [page for page in PAGES if "log" not in page.relative_to(ROOT).parts and page.name != "CHANGELOG.md"]
"""The log and the changelog keep earlier names."""
NOTEBOOKS = sorted((ROOT / "examples/notebooks").glob("*.ipynb"))
RUN = (
    "README.md",
    "docs/quickstart.md",
    "docs/guides/edit.md",
    "docs/guides/generate.md",
    "docs/guides/presets.md",
    "docs/guides/personalize.md",
)
"""Pages whose Python blocks are executed in order, except those below `<!-- not run: ... -->`."""


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands(start: str) -> list[str]:
    lines = [line for page in CURRENT for block in blocks(page, "bash") for line in block.splitlines()]
    plain = [re.sub(r"^(?:[A-Z_]+=\S+ )+", "", line).split("  #")[0].strip() for line in lines]
    return sorted({line for line in plain if line.startswith(start)})


# -------------------------------------------------------------------------------------------------- links and files


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_have_targets(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)#\s]+)", text)
    generated = ("cli.md", "config.md", *(f"{path.stem}.md" for path in NOTEBOOKS))
    for target in targets:
        if not target.startswith("http") and not target.endswith(generated):
            assert (page.parent / target).exists(), f"{name_of(page)} links {target}"


@pytest.mark.parametrize("page", CURRENT, ids=name_of)
def test_named_files_exist(page: Path) -> None:
    named = r"\b(?:src|configs|docs|examples|tests|benchmarks|studies|tools)/[\w./-]*\w"
    for path in re.findall(named, page.read_text(encoding="utf-8")):
        assert (ROOT / path).exists() or (ROOT / "docs" / path).exists(), f"{name_of(page)} names {path}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_links_of_notebooks_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target
    page = reference_tool().notebook_page(path)
    assert "../../docs" not in page
    assert f"notebooks/{path.stem}.md" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        assert str(page.relative_to(ROOT / "docs")) in navigation, page


def test_readme_has_at_most_150_lines() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_readme_quotes_the_model_card() -> None:
    readme, card = (path.read_text(encoding="utf-8").replace("**", "") for path in (ROOT / "README.md", CARD))
    quoted = re.search(r"<!-- scores.*?-->(.*?)<!-- end of scores -->", readme, re.DOTALL)
    assert quoted
    values = re.findall(r"\d\.\d\d \(\d\.\d\d to \d\.\d\d\)", quoted[1])
    assert len(values) >= 3
    for value in values:
        assert value in card
    release = re.search(r"^# `(mini-[\d.-]+)`", card, re.MULTILINE)
    assert release
    assert release[1] in quoted[1]


# ---------------------------------------------------------------------------------------------------------- commands


@pytest.mark.parametrize("command", commands("blip-diffusion "))
def test_commands_are_parsed(command: str) -> None:
    reference_tool().build_parser().parse_args(
        shlex.split(command)[1:] if "--version" not in command else ["data", "sheet"]
    )


@pytest.mark.parametrize("command", commands("python "))
def test_programs_exist(command: str) -> None:
    words = shlex.split(command)
    if words[1] == "-m":
        assert importlib.util.find_spec(words[2]), words[2]
    else:
        assert (ROOT / words[1]).exists(), words[1]


@pytest.mark.parametrize("command", commands("make "))
def test_make_targets_exist(command: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{command.split()[1]}:", makefile, re.MULTILINE)


@pytest.mark.parametrize("page", CURRENT, ids=name_of)
def test_keys_of_overrides_exist(page: Path) -> None:
    known = reference_tool().config_page()
    for table, key in re.findall(r"--set '?([\w.]+)\.(\w+)=", page.read_text(encoding="utf-8")):
        sections = [text.partition("###")[0] for text in known.split(f"### `[{table}]`")[1:]]
        assert any(f"| `{key}` |" in section for section in sections), f"{table}.{key}"


# ------------------------------------------------------------------------------------------------------------ Python


@pytest.mark.parametrize("page", [page for page in CURRENT if blocks(page, "python")], ids=name_of)
def test_imports_of_examples_exist(page: Path) -> None:
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("blip_diffusion"):
                exec(compile(ast.Module([node], []), name_of(page), "exec"), {})


@pytest.mark.parametrize("name", RUN)
def test_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    (tmp_path / "photos").mkdir()
    for number, angle in enumerate((0, 20)):
        photo = Image.open(ROOT / "examples/dog.png").convert("RGB").rotate(angle, fillcolor="white")
        photo.save(tmp_path / "photos" / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    text = re.sub(
        r"<!-- not run.*?-->\s*```python.*?```", "", (ROOT / name).read_text(encoding="utf-8"), flags=re.DOTALL
    )
    namespace: dict[str, object] = {}
    for block in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        block = re.sub(r"(TuneConfig\(.*)\bsteps=\d+", r"\1steps=2", block)  # tuning takes a minute otherwise
        exec(compile(block, name, "exec"), namespace)


# -------------------------------------------------------------------------------------------------------------- tools


def reference_tool():  # type: ignore[no-untyped-def]
    """Return the script that writes the generated pages, which is not part of the package."""
    name = "make_reference"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / "make_reference.py")
        assert spec
        assert spec.loader
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def test_generated_pages_contain_every_command_and_table() -> None:
    cli, config = reference_tool().cli_page(), reference_tool().config_page()
    for command in ("generate", "tune", "train", "evaluate", "convert", "data build", "data sheet"):
        assert f"\n## {command}\n" in cli
    for table in ("model", "train", "train.optim", "subject", "consistency"):
        assert f"### `[{table}]`" in config
    assert "### `TuneConfig`" in config
