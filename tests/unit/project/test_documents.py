"""What the documents say of the tree: paths and links lead somewhere, and the walks in it follow the imports."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from posttrain.pipeline.graph.registry import STAGE_TYPES

ROOT = Path(__file__).resolve().parents[3]
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
OURS = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")} | {".ci", ".typing"}
A_USERS_OWN = {"conf/launcher/mycluster.yaml"}
WALKS = {"What happens to one demonstration, from file to gradient": 12, "What happens to one prompt in PPO": 16}
"""Heading of a walk, and the most files that it opens."""


def prose_of(page: str) -> str:
    """Return a page without its blocks of code."""
    return re.sub(r"```.*?```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)


def is_a_path(text: str) -> bool:
    """Return whether a text in backticks is a path of the project: below one of its folders, or one of its files."""
    inside = "/" in text and text.split("/")[0] in OURS
    return re.fullmatch(r"[\w.*/-]+", text) is not None and (inside or text in OURS) and text not in A_USERS_OWN


@pytest.mark.parametrize("page", PAGES)
def test_every_path_that_a_page_names_exists(page: str) -> None:
    named = filter(is_a_path, re.findall(r"`([^`\n]+)`", prose_of(page)))
    assert [path for path in named if not list(ROOT.glob(path.rstrip("/")))] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_link_within_the_project_leads_somewhere(page: str) -> None:
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", prose_of(page)) if "://" not in link]
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []


def walk_of(heading: str) -> list[str]:
    """Return the files of a numbered list below a heading of the architecture."""
    _, _, rest = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").partition(f"### {heading}\n")
    return re.findall(r"^\d+\. `([^`]+)`:", re.split(r"^#", rest, maxsplit=1, flags=re.MULTILINE)[0], re.MULTILINE)


def imports_of(file: str) -> set[str]:
    """Return the dotted names that a file may import."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize(("heading", "most"), WALKS.items())
def test_a_walk_is_short_and_follows_the_imports(heading: str, most: int) -> None:
    files = walk_of(heading)
    assert 0 < len(files) <= most
    assert len({*files}) == len(files)
    known = {stage_type.module for stage_type in STAGE_TYPES.values()}
    for file in files:
        module = f"posttrain.{file.removesuffix('.py').replace('/', '.')}"
        assert module in known, f"{file} is neither a stage nor imported by a file before it"
        known |= imports_of(file)
