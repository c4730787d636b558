"""The card of a model that leaves the store: what it was made from, under which licences and terms."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.stage.artifact import Manifest, is_artifact, read_manifest

CARD = "README.md"
TERMS = {
    "url": "published at",
    "published_revision": "revision",
    "generator": "generator",
    "generator_uses": "its terms allow",
    "uses": "the owner allows",
}
"""What a manifest may say of a source → the heading of its column."""
_ANSWERS_NOTHING = frozenset({"", "unknown"})


def write_card(artifact: Path, path: Path, name: str) -> None:
    """Write the card of an artifact; what a card that is there says stays, and the rest follows it."""
    manifest = read_manifest(artifact)
    ancestors, missing = made_from(artifact)
    body = _licences(manifest) + _sources(ancestors) + _missing(missing)
    if path.exists():
        text = f"{path.read_text(encoding='utf-8').rstrip()}\n\n{body}"
    else:
        text = f"{_header(manifest)}# {name}\n\nMade by the stage `{manifest.stage}` ({manifest.run}).\n\n{body}"
    path.write_text(text, encoding="utf-8")


def made_from(artifact: Path) -> tuple[list[Manifest], list[str]]:
    """Return the manifests of all that an artifact was made from, parents first, and the names of what is gone."""
    found: dict[str, Manifest] = {}
    missing: list[str] = []

    def visit(directory: Path) -> None:
        for parent in read_manifest(directory).parents.values():
            sibling = artifact.parent / parent.name
            if parent.digest in found or parent.name in missing:
                continue
            if not is_artifact(sibling) or read_manifest(sibling).digest != parent.digest:
                missing.append(parent.name)
                continue
            visit(sibling)
            found[parent.digest] = read_manifest(sibling)

    visit(artifact)
    return list(found.values()), missing


def _header(manifest: Manifest) -> str:
    """Return the part that the Hub reads: one licence by its name, several as another one."""
    if _ANSWERS_NOTHING & {*manifest.licenses, *([] if manifest.licenses else [""])}:
        return ""
    if len(manifest.licenses) == 1:
        return f"---\nlicense: {manifest.licenses[0].lower()}\n---\n\n"
    return f"---\nlicense: other\nlicense_name: {' AND '.join(manifest.licenses)!r}\n---\n\n"


def _licences(manifest: Manifest) -> str:
    listed = ", ".join(manifest.licenses) or "none recorded"
    return f"## Licences\n\nOf the data and models that it was made from: {listed}.\n"


def _sources(ancestors: list[Manifest]) -> str:
    """Return a table of the sources of all datasets, with what is said of any of them."""
    rows = [
        (manifest.stage, source, facts | {"licences": _counted(manifest.facts.get("licenses", {}).get(source, {}))})
        for manifest in ancestors
        for source, facts in manifest.facts.get("sources", {}).items()
        if manifest.kind == "dataset"
    ]
    if not rows:
        return ""
    said = {"licences": "licences of its rows"} | {
        name: heading for name, heading in TERMS.items() if any(facts.get(name) for _, _, facts in rows)
    }
    lines = [["dataset", "source", *said.values()], ["---"] * (2 + len(said))]
    lines += [[stage, source, *(_cell(facts.get(name)) for name in said)] for stage, source, facts in rows]
    return "\n## Sources\n\n" + "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _counted(licences: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({rows:,} rows)" for name, rows in licences.items()) or "no row kept"


def _cell(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value or "")
    return text.replace("|", "\\|").replace("\n", " ")


def _missing(missing: list[str]) -> str:
    return f"\nNo longer in the store, so that its sources are not listed: {', '.join(missing)}.\n" if missing else ""
