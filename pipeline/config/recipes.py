"""The recipes that there are: what each does and needs, read from the comment that it opens with."""

from __future__ import annotations

import dataclasses
import re
from importlib import resources
from pathlib import Path

from posttrain.pipeline.config.overrides import CONF


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A recipe, as a list shows it."""

    name: str
    line: str
    needs: str


def recipes(config_dir: Path | None = None) -> list[Recipe]:
    """Return the recipes of the shipped configuration and of a folder of the user's, by name."""
    folders = [Path(str(resources.files(CONF))), *([config_dir] if config_dir is not None else [])]
    found = [_recipe(folder / "recipe", path) for folder in folders for path in (folder / "recipe").rglob("*.yaml")]
    return sorted(found, key=lambda recipe: ("/" in recipe.name, recipe.name))


def _recipe(folder: Path, path: Path) -> Recipe:
    comment: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        comment.append(line.lstrip("# ") if not line.startswith("# @package") else "")
    text = " ".join(comment).strip()
    said = re.split(r"(?<=[.:;]) |  ", text, maxsplit=1)[0].rstrip(".:;")
    needs = next((line.removeprefix("Needs ").rstrip(".") for line in comment if line.startswith("Needs ")), "")
    return Recipe(path.relative_to(folder).with_suffix("").as_posix(), said, needs)
