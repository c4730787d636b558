"""The card of an exported model: sources and licences of everything that it was made from."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import yaml

from posttrain.stage.artifact import Manifest, Parent, commit, read_manifest
from posttrain.stage.card import CARD, write_card


def made(root: Path, stage: str, kind: str, parents: list[Path], spdx: list[str], **facts: Any) -> Path:
    temporary = root / f".{stage}"
    temporary.mkdir()
    (temporary / "file").write_text(stage)
    named = {path.name: Parent(read_manifest(path).kind, read_manifest(path).digest, path.name) for path in parents}
    manifest = Manifest(
        kind,
        stage,
        f"test.{stage}",
        stage.ljust(64, "0"),
        "",
        {},
        named,
        {},
        "",
        0,
        {},
        "",
        0,
        0.0,
        "",
        {},
        {},
        spdx,
        facts,
    )
    commit(temporary, root / f"{stage}-0", manifest)
    return root / f"{stage}-0"


def chain(root: Path) -> Path:
    terms = {
        "adapter": "messages",
        "url": "https://data.test/a|b",
        "generator": "some-model",
        "generator_uses": ["research"],
    }
    counted = {"mine": {"MIT": 1200, "CC-BY-4.0": 3}}
    data = made(
        root, "rows", "dataset", [], ["CC-BY-4.0", "MIT"], sources={"mine": terms, "none": {}}, licenses=counted
    )
    base = made(root, "base", "model", [], ["MIT"])
    tokens = made(root, "tokens", "tokens", [data], ["CC-BY-4.0", "MIT"])
    return made(root, "sft", "model", [base, tokens], ["CC-BY-4.0", "MIT"])


def test_the_card_lists_sources_and_terms_of_what_lies_behind(tmp_path: Path) -> None:
    write_card(chain(tmp_path), tmp_path / CARD, "mine")
    text = (tmp_path / CARD).read_text()
    header = yaml.safe_load(text.split("---\n")[1])
    assert header == {"license": "other", "license_name": "CC-BY-4.0 AND MIT"}
    assert "# mine" in text and "`sft`" in text
    assert "| dataset | source | licences of its rows | published at | generator | its terms allow |" in text
    assert (
        r"| rows | mine | CC-BY-4.0 (3 rows), MIT (1,200 rows) | https://data.test/a\|b | some-model | research |"
        in text
    )
    assert "| rows | none | no row kept |  |  |  |" in text


def test_one_licence_is_named_as_the_hub_has_it_and_an_unknown_one_is_not(tmp_path: Path) -> None:
    for licence, header in (("Apache-2.0", "---\nlicense: apache-2.0\n---\n"), ("unknown", "# m")):
        root = tmp_path / licence
        root.mkdir()
        write_card(made(root, "base", "model", [], [licence]), root / CARD, "m")
        assert (root / CARD).read_text().startswith(header)


def test_a_published_card_stays_and_is_added_to(tmp_path: Path) -> None:
    (tmp_path / CARD).write_text("---\nlicense: gemma\n---\n\n# Theirs\n")
    write_card(chain(tmp_path), tmp_path / CARD, "mine")
    text = (tmp_path / CARD).read_text()
    assert text.startswith("---\nlicense: gemma\n---\n\n# Theirs\n\n## Licences\n") and "## Sources" in text


def test_what_is_gone_is_named(tmp_path: Path) -> None:
    model = chain(tmp_path)
    shutil.rmtree(tmp_path / "rows-0")
    write_card(model, tmp_path / CARD, "mine")
    text = (tmp_path / CARD).read_text()
    assert "are not listed: rows-0." in text and "## Sources" not in text
