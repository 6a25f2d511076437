"""Write `docs/reference/cli.md`, `config.md` and `docs/notebooks/*.md`: `python tools/make_reference.py`.

The command line is read from its argument parser, the configuration from the source of its dataclasses. Neither
imports torch. The notebooks are rendered without outputs, as they are committed.
"""

import argparse
import ast
import io
import json
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from blip_diffusion.cli.main import build_parser

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "blip_diffusion"
REFERENCE = ROOT / "docs" / "reference"
NOTEBOOKS = ROOT / "examples" / "notebooks"
NOTICE = "<!-- Written by tools/make_reference.py. -->\n\n"


def main() -> None:
    """Write all pages."""
    REFERENCE.mkdir(parents=True, exist_ok=True)
    (REFERENCE / "cli.md").write_text(NOTICE + cli_page(), encoding="utf-8")
    (REFERENCE / "config.md").write_text(NOTICE + config_page(), encoding="utf-8")
    (ROOT / "docs" / "notebooks").mkdir(exist_ok=True)
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        page = ROOT / "docs" / "notebooks" / f"{path.stem}.md"
        page.write_text(NOTICE + notebook_page(path), encoding="utf-8")


# ------------------------------------------------------------------------------------------------------- command line


def cli_page() -> str:
    """Return the Markdown of all commands and their flags."""
    parser = build_parser()
    intro = (
        "# Command line\n\nA flag may be shortened as long as it stays unambiguous: `--num-im` for `--num-images`.\n"
    )
    sections = [command_section(name, command) for name, command in leaf_commands(parser, "blip-diffusion")]
    return "\n".join([intro, *sections])


def leaf_commands(parser: argparse.ArgumentParser, name: str) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yield the commands that have no further commands, with their full names."""
    nested = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not nested:
        yield name, parser
    for action in nested:
        for word, command in action.choices.items():
            yield from leaf_commands(command, f"{name} {word}")


def command_section(name: str, parser: argparse.ArgumentParser) -> str:
    """Return one command's section: its purpose, usage and a table of arguments."""
    rows = [argument_row(action) for action in parser._actions if not isinstance(action, argparse._HelpAction)]
    usage = parser.format_usage().removeprefix("usage: ").replace("\n" + " " * len("usage: "), "\n")
    lines = [f"## {name.removeprefix('blip-diffusion ')}", ""]
    lines += [parser.description, ""] if parser.description else []
    lines += ["```text", usage.rstrip(), "```", "", "| argument | default | meaning |", "|---|---|---|", *rows, ""]
    return "\n".join(lines)


def argument_row(action: argparse.Action) -> str:
    """Return one line of the table."""
    name = ", ".join(action.option_strings) or action.dest
    shown = f"{name} {placeholder(action)}".rstrip() if action.option_strings else name
    plain = action.default not in (None, False, "", [], argparse.SUPPRESS)
    return f"| `{cell(shown)}` | {f'`{action.default}`' if plain else ''} | {cell(action.help or '')} |"


def placeholder(action: argparse.Action) -> str:
    """Return what stands for a flag's value."""
    if action.nargs == 0:
        return ""
    choices = f"{{{','.join(map(str, action.choices))}}}" if action.choices else action.dest.upper()
    return action.metavar if isinstance(action.metavar, str) else choices


def cell(text: str) -> str:
    """Return text that fits in a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|").replace("%%", "%")


# ------------------------------------------------------------------------------------------------------ configuration


@dataclass(frozen=True)
class Key:
    """One field of a configuration dataclass."""

    name: str
    type: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Table:
    """One configuration dataclass."""

    summary: str
    keys: list[Key]


def config_page() -> str:
    """Return the Markdown of every configuration table."""
    tables = all_dataclasses()
    intro = (
        "# Configuration\n\n"
        "Each table of a training configuration is one dataclass. A file says only what differs from the defaults.\n"
        "`--set table.key=value` changes one value. `none` stands for no value. An unknown key is an error.\n"
    )
    training = list(sections_of("RunConfig", "", tables))
    recipe = list(sections_of("RecipeConfig", "", tables))
    control = list(sections_of("ControlRecipeConfig", "", tables))
    tuning = list(sections_of("TuneConfig", "", tables))
    parts = [
        *("## Training: the TOML file of `train`\n", *training),
        *("## Training mini: the TOML file of `train-mini`\n", *recipe),
        *("## Training adapters: the TOML file of `train-control`\n", *control),
        *("## Personalization: `TuneConfig`\n", *tuning),
    ]
    return "\n".join([intro, *parts])


def sections_of(name: str, path: str, tables: dict[str, Table]) -> Iterator[str]:
    """Yield the section of a dataclass, then those of the dataclasses within it."""
    table = tables[name]
    inner = {key.name: nested for key in table.keys if (nested := nested_name(key.type, tables))}
    rows = [key_row(key) for key in table.keys if key.name not in inner]
    heading = f"### `[{path}]`\n" if path else f"### `{name}`\n"
    yield "\n".join(
        [
            heading,
            table.summary,
            "",
            *(["| key | type | default | meaning |", "|---|---|---|---|", *rows, ""] if rows else []),
        ]
    )
    for key, nested in inner.items():
        yield from sections_of(nested, f"{path}.{key}" if path else key, tables)


def key_row(key: Key) -> str:
    """Return one line of the table."""
    default = f"`{cell(key.default)}`" if key.default else "required"
    return f"| `{key.name}` | `{cell(key.type)}` | {default} | {cell(key.meaning)} |"


def nested_name(annotation: str, tables: dict[str, Table]) -> str | None:
    """Return the name of the dataclass that a field holds, if it holds one."""
    names = [part.strip().rpartition(".")[2] for part in annotation.split("|")]
    return next((name for name in names if name.endswith("Config") and name in tables), None)


def all_dataclasses() -> dict[str, Table]:
    """Return every dataclass of the package whose name ends in `Config`."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        comments = trailing_comments(text)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef) and node.name.endswith("Config") and node.decorator_list:
                found[node.name] = Table(ast.get_docstring(node) or "", keys_of(node, comments))
    return found


def trailing_comments(text: str) -> dict[int, str]:
    """Return the comments of a source file by line."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}


def keys_of(node: ast.ClassDef, comments: dict[int, str]) -> list[Key]:
    """Return the fields of a dataclass: a field's meaning is the string below it, or the comment beside it."""
    keys = []
    for statement, following in zip(node.body, [*node.body[1:], None], strict=True):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        meaning = comments.get(statement.end_lineno or 0, "")
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            meaning = str(following.value.value)
        default = ast.unparse(statement.value) if statement.value else ""
        keys.append(Key(statement.target.id, ast.unparse(statement.annotation), default, meaning))
    return keys


# ---------------------------------------------------------------------------------------------------------- notebooks


def notebook_page(path: Path) -> str:
    """Return a notebook as Markdown, with links that fit the site."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    sources = [(cell["cell_type"], "".join(cell["source"])) for cell in cells]
    parts = [f"```python\n{source}\n```" if kind == "code" else linked(source) for kind, source in sources]
    title, *rest = parts
    return "\n\n".join([title, f"The notebook is `{path.relative_to(ROOT)}`.", *rest]) + "\n"


def linked(text: str) -> str:
    """Return the text of a notebook with the links of its page."""
    return text.replace("(../../docs/", "(../").replace(".ipynb)", ".md)")


if __name__ == "__main__":
    main()
