"""`posttrain show NAME --dropped REASON`, and the groups that choose the steps of curation."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from planted_rows import Words

from posttrain.data.config.curate import CurateConfig
from posttrain.pipeline.cli import main
from posttrain.pipeline.config.compose import compose_config
from posttrain.pipeline.graph.curation import told_curation
from posttrain.pipeline.graph.graph import build_graph
from posttrain.stage.errors import UsageError

CONF = Path(__file__).resolve().parents[4] / "conf"
GIVEN = ["recipe=own/sft", "paths.model=model", "paths.demonstrations=rows.jsonl", "paths.items=items.jsonl"]
PIPELINE = """# @package _global_
stages:
  rows:
    run: data.curate
    with: { record_type: demonstration, eval_fraction: 0, sources: [{ name: mine, path: rows.jsonl }] }
"""
RECIPE = """# @package _global_
defaults: [{ override /pipeline: rows }]
name: rows
"""


def knobs(*groups: str) -> CurateConfig:
    config: CurateConfig = {s.name: s.config for s in build_graph(compose_config([*GIVEN, *groups]))}["demonstrations"]
    return config


def test_a_group_chooses_the_steps_and_another_the_licences() -> None:
    assert (knobs().dedup, knobs().steps.order) == (True, [])
    assert (knobs("data=none").dedup, knobs("data=none").steps.order) == (False, [])
    strict = knobs("data=strict", "data/policy=commercial", "data.curate.steps.near_duplicate.threshold=0.7").steps
    assert strict.order == ["licence", "quality", "language", "pii", "contamination", "near_duplicate"]
    assert (strict.licence.use, strict.near_duplicate.threshold) == ("commercial", 0.7)
    assert strict.licence.allow["CC-BY-NC-4.0"] == ["research"]


@pytest.mark.parametrize(("override", "told"), [("data=stric", "did you mean"), ("data/policy=mine", "available:")])
def test_an_unknown_group_or_policy_is_an_error_that_names_the_known_ones(override: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        compose_config([*GIVEN, override])


def test_the_way_of_the_rows_is_told_before_anything_runs() -> None:
    strict = build_graph(compose_config([*GIVEN, "data=strict", "data/policy=research"]))
    assert told_curation(strict) == [
        "demonstrations: exact duplicates → licence → quality → language → pii → contamination → near duplicate "
        "(for research use)"
    ]
    assert told_curation(build_graph(compose_config(GIVEN))) == ["demonstrations: exact duplicates"]


@pytest.mark.parametrize("order", ["[near_duplicate]", "[]"])
def test_dropped_rows_are_read_back_beside_what_they_lost_to(
    tmp_path: Path, order: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = Words(random.Random(0)).text(60)
    rows = [{"prompt": "Tell me.", "completion": said} for said in (text, f"{text} Indeed.", "No.")]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for folder, content in (("pipeline", PIPELINE), ("recipe", RECIPE)):
        (tmp_path / "conf" / folder).mkdir(parents=True)
        (tmp_path / "conf" / folder / "rows.yaml").write_text(content)
    overrides = ["recipe=rows", "tracking=none", f"data.curate.steps.order={order}"]
    assert main(["run", *overrides, "--config-dir", "conf"]) == 0
    capsys.readouterr()
    code = main(["show", "rows", "--dropped", "near_duplicate"])
    told = capsys.readouterr()
    if order == "[]":
        assert code == 2
        assert "without dropped.jsonl" in told.err
        return
    assert code == 0
    assert "dropped by near_duplicate: near_duplicate  (id mine/" in told.out
    assert told.out.count(text[:40]) == 2
    assert "1 of 1 rows" in told.out
    assert main(["show", "rows", "--dropped", "near_duplicates"]) == 2
    assert "did you mean 'near_duplicate'? (near_duplicate (1))" in capsys.readouterr().err


@pytest.mark.parametrize("policy", sorted(path.stem for path in (CONF / "data" / "policy").glob("*.yaml")))
def test_every_policy_composes_and_names_its_use(policy: str) -> None:
    licence = knobs(f"data/policy={policy}").steps.licence
    assert licence.use == (None if policy == "none" else policy)
    assert all(uses for uses in licence.allow.values())
