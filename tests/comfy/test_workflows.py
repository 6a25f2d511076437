"""The example workflows: both formats say the same, and every node is in one of them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "comfyui"
API = sorted((FOLDER / "api_workflows").glob("*.json"))
NODES = {
    name
    for path in (ROOT / "src/blip_diffusion/comfy").glob("*_nodes.py")
    for name in re.findall(r'node_id="(\w+)"', path.read_text(encoding="utf-8"))
}


def read(path: Path) -> dict[str, Any]:
    table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return table


def links_of(graph: dict[str, Any]) -> set[tuple[str, int, str, str]]:
    return {
        (value[0], value[1], target, name)
        for target, node in graph.items()
        for name, value in node["inputs"].items()
        if isinstance(value, list)
    }


def test_every_node_is_in_a_workflow() -> None:
    used = {node["class_type"] for path in API for node in read(path).values()}
    assert len(NODES) == 9
    assert {name for name in used if name.startswith("BlipDiffusion")} == NODES


@pytest.mark.parametrize("path", API, ids=lambda path: path.stem)
def test_both_formats_say_the_same(path: Path) -> None:
    graph, page = read(path), read(FOLDER / "example_workflows" / path.name)
    nodes = {str(node["id"]): node for node in page["nodes"]}
    assert {number: node["class_type"] for number, node in graph.items()} == {
        n: one["type"] for n, one in nodes.items()
    }
    links = {
        (str(source), slot, str(target), nodes[str(target)]["inputs"][place]["name"])
        for _, source, slot, target, place, _ in page["links"]
    }
    assert links == links_of(graph)
    for number, node in graph.items():
        values = [value for value in node["inputs"].values() if not isinstance(value, list)]
        assert [value for value in values if value not in nodes[number]["widgets_values"]] == []


def test_the_folder_holds_nothing_but_what_comfyui_reads() -> None:
    found = {path.name for path in FOLDER.iterdir() if path.name != "__pycache__"}
    assert found == {"__init__.py", "README.md", "pyproject.toml", "api_workflows", "example_workflows"}
