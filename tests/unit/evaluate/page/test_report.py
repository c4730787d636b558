"""The report on a whole, made-up pipeline whose figures are known."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from parsed_page import Page
from report_pipeline import (
    HOSTILE,
    LANGUAGES,
    SKILL,
    TASKS,
    Store,
    accounting,
    build_pipeline,
    made_items,
    made_responses,
    with_items,
)
from run_report import run_report

from posttrain.evaluate.measure.item_scores import read_items, write_items
from posttrain.evaluate.measure.selection import SampledItem, calibration_figures, curve_figures
from posttrain.evaluate.page import compare, drift_rows, lineage
from posttrain.evaluate.page.figures import drift_plots, plots
from posttrain.evaluate.page.lineage_svg import lay_out
from posttrain.stage.artifact import read_manifest
from posttrain.stage.entry import StageResult
from posttrain.stage.errors import UsageError
from posttrain.stage.wording import duration


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return build_pipeline(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def written(inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[StageResult, str, Any]:
    output = tmp_path_factory.mktemp("report") / "out"
    result = run_report(inputs, output)
    page = (output / "report.html").read_text(encoding="utf-8")
    return result, page, json.loads((output / "summary.json").read_text(encoding="utf-8"))


def test_policies_stand_in_the_order_in_which_they_descend(written: tuple[StageResult, str, Any]) -> None:
    _, _, summary = written
    pairs = [(row["before"], row["after"], row["metric"]) for row in summary["paired"]]
    assert pairs == [
        ("base", "sft", "exact_match"),
        ("base", "sft", "preference"),
        ("sft", "dpo", "exact_match"),
        ("sft", "dpo", "preference"),
    ]


def test_the_summary_holds_the_figures_of_the_items(written: tuple[StageResult, str, Any]) -> None:
    _, _, summary = written
    items = {name: made_items(name) for name in SKILL}
    for name, figures in summary["policies"].items():
        expected = sum(item.correct for item in items[name]) / 450
        assert figures["items"]["overall"]["exact_match"]["value"] == pytest.approx(expected)
        assert figures["items"]["by_task"]["refusal"]["n"] == 90
        assert figures["items"]["by_task_and_language"]["refusal"]["es"]["n"] == 30
    row = summary["paired"][2]
    gains = [after.correct - before.correct for before, after in zip(items["sft"], items["dpo"], strict=True)]
    assert row["difference"] == pytest.approx(sum(gains) / 450)
    assert (row["won"], row["lost"], row["n"]) == (gains.count(1), gains.count(-1), 450)
    # Skills grow and every item's luck is the same for all policies, so nothing is ever lost: p = 2 · ½^won.
    assert row["lost"] == 0 and row["p_value"] == pytest.approx(2 * 0.5 ** row["won"])
    arithmetic = [row for row in summary["paired_by_task"] if row["task"] == "arithmetic" and row["after"] == "sft"]
    assert [row["n"] for row in arithmetic] == [90, 90]


def test_the_headline_is_the_last_gain_in_preference(written: tuple[StageResult, str, Any]) -> None:
    result, page, summary = written
    row = summary["paired"][-1]
    expected = f"dpo over sft: preference +{row['difference']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
    assert result.headline == expected
    assert row["low"] > 0
    assert expected in Page(page).text


def test_without_pairs_the_headline_is_what_fresh_samples_gained(inputs: dict[str, Path], tmp_path: Path) -> None:
    several = run_report({name: inputs[name] for name in ("drift_sft", "drift_dpo", "drift_ppo")}, tmp_path / "several")
    drift = json.loads((tmp_path / "several/summary.json").read_text(encoding="utf-8"))["drift"]
    low, high = sorted(drift[name]["change"]["score"]["value"] for name in ("dpo", "ppo"))
    assert several.headline == f"2 policies over sft: mean score {low:+.2f} to {high:+.2f}"
    one = run_report({name: inputs[name] for name in ("drift_sft", "drift_ppo")}, tmp_path / "one")
    assert one.headline == f"ppo over sft: mean score {drift['ppo']['change']['score']['value']:+.2f}"


def test_the_page_is_whole_and_loads_nothing(written: tuple[StageResult, str, Any]) -> None:
    _, page, _ = written
    parsed = Page(page)
    assert parsed.addresses == []
    assert "link" not in parsed.tags and "@import" not in page
    assert "default-src 'none'" in page and parsed.tags.count("script") == 2  # the items, and what shows them
    assert len(parsed.ids) == len(set(parsed.ids))
    assert {reference[1:] for reference in parsed.references} <= set(parsed.ids)
    sections = (
        "changes",
        "stages",
        "lineage",
        "policies",
        "drift",
        "rewards",
        "curves",
        "rows",
        "samples",
        "provenance",
    )
    assert set(sections) <= set(parsed.ids)
    for text in ("CC0-1.0", "torch 2.13.0", "3 min 04 s", "accuracy 0.84 ± 0.02", "duplicate 3", "held-out"):
        assert text in parsed.text


def test_no_head_of_a_table_is_empty_and_no_picture_holds_links(written: tuple[StageResult, str, Any]) -> None:
    page = written[1]
    assert not re.findall(r"<th[^>]*>\s*</th>", page)
    assert not [svg for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL) if 'role="img"' in svg and "<a " in svg]


def test_text_of_the_data_is_shown_as_text(written: tuple[StageResult, str, Any]) -> None:
    assert HOSTILE in Page(written[1]).text


def test_every_stage_of_the_lineage_is_listed(written: tuple[StageResult, str, Any]) -> None:
    _, page, summary = written
    names = {row["stage"] for row in summary["stages"]}
    assert {"sources", "comparisons", "base", "sft_tokens", "reference", "dpo", "evaluate_reward"} <= names
    assert len(summary["stages"]) == 21
    assert all(f">{name}<" in page for name in names)


def test_drift_is_told_against_the_reference(written: tuple[StageResult, str, Any]) -> None:
    _, page, summary = written
    assert {name: row["method"] for name, row in summary["drift"].items()} == {"sft": "SFT", "dpo": "DPO", "ppo": "PPO"}
    assert summary["drift"]["sft"]["change"] is None
    for name, gain in (("dpo", 0.2), ("ppo", 0.1)):
        row, responses = summary["drift"][name], made_responses(name)
        assert row["figures"]["kl"]["value"] == pytest.approx(sum(one.kl for one in responses) / 120)
        # Every response gained the same, so the paired interval has no width, though scores differ by item.
        assert row["change"]["score"] == pytest.approx({"value": gain, "low": gain, "high": gain, "n": 60})
    tokens = {"sft": 120 * 10, "ppo": 120 * 8}
    change = -2.0 - 120 * 2.5 / tokens["ppo"] - -2.0
    assert summary["drift"]["ppo"]["change"]["reference_logprob_per_token"]["value"] == pytest.approx(change)
    text = Page(page).text
    assert "+0.200 [+0.200, +0.200]" in re.sub(r"\s+", " ", text)
    for part in ("KL to the reference, nats per response", "sft, the reference", "Score against KL, by rollout"):
        assert part in text


def test_without_the_references_own_samples_there_is_no_change(inputs: dict[str, Path], tmp_path: Path) -> None:
    run_report({"drift_ppo": inputs["drift_ppo"]}, tmp_path / "out")
    summary = json.loads((tmp_path / "out/summary.json").read_text(encoding="utf-8"))
    assert summary["drift"]["ppo"]["change"] is None
    assert "the reference" not in drift_plots.score_by_kl(
        drift_rows.drifts_of(lineage.walk([inputs["drift_ppo"]]), 0.95, 100, 0), "figure"
    ).replace("KL to the reference", "")


def test_what_choosing_among_samples_buys_is_shown(inputs: dict[str, Path], tmp_path: Path) -> None:
    root = inputs["drift_sft"].parent
    rng = random.Random(0)
    items = [
        SampledItem(
            id=f"item-{number}",
            task="count",
            language="en",
            prompt_tokens=4,
            responses=["a"] * 4,
            texts=["a"] * 4,
            answers=[rng.choice("ab") for _ in range(4)],
            tokens=[5] * 4,
            reasoning_tokens=[number % 3] * 4,
            ended=[True] * 4,
            logprobs=[rng.random() - 1 for _ in range(4)],
            rewards=[rng.random() for _ in range(4)],
            correct=[float(rng.random() < 0.5) for _ in range(4)],
            preference=None if number % 2 else [rng.random() for _ in range(4)],
        )
        for number in range(40)
    ]
    curve = curve_figures(items, 100, 0.95, 0)
    files = {"curve.json": curve, "calibration.json": calibration_figures(items, 0.05, 0.95, 0)}
    model = read_manifest(inputs["drift_sft"]).parents["model"].name
    selection = Store(root).add("best_of_n", "selection", "evaluate.best_of_n", {"model": root / model}, files)
    run_report({"best_of_n": selection, "drift_sft": inputs["drift_sft"]}, tmp_path / "out")
    parsed = Page((tmp_path / "out/report.html").read_text(encoding="utf-8"))
    assert "selection" in parsed.ids and len(parsed.ids) == len(set(parsed.ids))
    cells = re.findall(r"0\.\d{3}", parsed.text.partition("majority vote")[2])
    assert cells[:3] == [f"{point['value']:.3f}" for point in curve["curves"]["correct"]["majority"]]
    assert "proxy: the reward model" in parsed.text


def test_a_line_joins_the_policies_of_a_method_in_order_of_kl(inputs: dict[str, Path]) -> None:
    drifts = drift_rows.drifts_of(lineage.walk(inputs.values()), 0.95, 100, 0)
    origin, dpo, ppo = drifts
    further = dataclasses.replace(
        dpo, label="further", figures=dpo.figures | {"kl": dict.fromkeys(("value", "low", "high"), 9.0)}
    )
    svg = drift_plots.score_by_kl([origin, further, dpo, ppo], "figure")
    lines = [
        [float(x) for x in re.findall(r"[ML] (-?[\d.]+) ", path)]
        for path in re.findall(r'<path d="([^"]+)" clip-path[^>]*style="[^"]*stroke-width: 1.2', svg)
    ]
    assert [len(line) for line in lines] == [3, 2]
    assert all(line == sorted(line) for line in lines)
    assert lines[0][0] == lines[1][0]


def test_names_that_would_break_figures_are_drawn_as_they_are() -> None:
    bar = {"value": 0.5, "low": 0.25, "high": 0.75}
    svg = plots.grouped_bars("score", [HOSTILE], {HOSTILE: {HOSTILE: bar}}, "figure")
    assert Page(svg).text.count(HOSTILE) == 2
    assert "script" not in Page(svg).tags


def test_samples_are_spread_over_tasks_and_languages(inputs: dict[str, Path]) -> None:
    policies = compare.policies_of(lineage.walk(inputs.values()), 0.95)
    samples = compare.select_samples(policies, 15, seed=3)
    assert {(row[0].task, row[0].language) for row in samples} == {(t, lang) for t in TASKS for lang in LANGUAGES}
    assert all(len({answer.id for answer in row}) == 1 for row in samples)
    assert [answer.response.split()[0] for answer in samples[0]] == ["base", "sft", "dpo"]
    assert compare.select_samples(policies, 15, seed=3) == samples != compare.select_samples(policies, 15, seed=4)


def test_a_branch_is_compared_with_its_own_ancestor(tmp_path: Path) -> None:
    store = Store(tmp_path)
    base = store.add("base", "model", "train.base")
    sft = store.add("sft", "model", "train.sft", {"model": base})
    scores = [with_items(store, "evaluate_sft", "sft", {"model": sft})]
    for name in ("dpo_a", "dpo_b"):
        model = store.add(name, "model", "train.dpo", {"model": sft})
        scores.append(with_items(store, f"evaluate_{name}", "dpo", {"model": model}))
    tree = lineage.walk(scores)
    steps = compare.consecutive(tree, compare.policies_of(tree, 0.95))
    assert [(before.label, after.label) for before, after in steps] == [("sft", "dpo_a"), ("sft", "dpo_b")]


def test_policies_are_compared_where_both_were_asked_the_same(tmp_path: Path) -> None:
    store = Store(tmp_path)
    base = store.add("base", "model", "train.base")
    tree = lineage.walk(store.add(name, "model", "train.sft", {"model": base}) for name in ("as_is", "curated"))
    models = {node.stage: node.id for node in tree.of_kind("model") if node.stage != "base"}
    items = made_items("sft")
    asked = {"leaked": items[:20], "fresh": items[20:40]}
    policies = [
        compare.Policy(f"{name} on {what}", models[name], own, None, None, 0)
        for name in ("as_is", "curated")
        for what, own in asked.items()
    ]
    assert [(before.label, after.label) for before, after in compare.consecutive(tree, policies)] == [
        ("as_is on leaked", "curated on leaked"),
        ("as_is on fresh", "curated on fresh"),
    ]


def test_a_removed_parent_is_named_as_missing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    base = store.add("base", "model", "train.base")
    sft = store.add("sft", "model", "train.sft", {"model": base})
    (base / "manifest.json").unlink()
    run_report({"sft": sft}, tmp_path / "report")
    assert "not found beside the artifact made from it" in (tmp_path / "report/report.html").read_text()


def test_a_report_on_data_alone_has_no_policies(tmp_path: Path) -> None:
    files = {"accounting.json": accounting({"a": 100}) | {"rows_in": 101}}
    source = files["accounting.json"]["by_source"]["a"]
    source |= {"rows_in": 101, "ignored_columns": {"id": 101, "notes": 7}, "ignored_content": {"notes": 7}}
    dataset = Store(tmp_path).add("data", "dataset", "data.curate", files=files)
    result = run_report({"data": dataset}, tmp_path / "report")
    page = (tmp_path / "report/report.html").read_text(encoding="utf-8")
    assert result.metrics == {"policies": 0, "reward_models": 0}
    assert result.headline == "data was made; no model was"
    assert "does not add up" in page and 'id="policies"' not in page
    assert "column notes not used 7, column id not used 101</td>" in page


def test_what_is_noted_of_rows_and_what_they_may_be_long_is_shown(tmp_path: Path) -> None:
    store = Store(tmp_path)
    noted = {"rejected_scored_higher": 7, "in_evaluation_items": 58}
    files = {"accounting.json": accounting({"a": 100}, noted=noted)}
    files["accounting.json"]["by_source"]["a"]["noted"] = noted
    dataset = store.add("data", "dataset", "data.curate", files=files)
    plain = store.add("plain", "dataset", "data.curate", files={"accounting.json": accounting({"a": 100})})
    figures = {"total": 9, "p50": 1, "p95": 2, "max": 3, "by_language": {}}
    tokens = {"accounting.json": accounting({"a": 100}, tokens=figures), "tokens.json": {"max_length": 1234}}
    made = store.add("tokens", "tokens", "data.tokenize", {"data": dataset}, files=tokens)
    run_report({"data": dataset, "plain": plain, "tokens": made}, tmp_path / "report")
    text = " ".join(Page((tmp_path / "report/report.html").read_text(encoding="utf-8")).text.split())
    assert text.count("in evaluation items 58, rejected scored higher 7") == 1
    assert "data.tokenize.max_length, drop as overlong" in text and "1 234" in text
    accounts = json.loads((tmp_path / "report/summary.json").read_text(encoding="utf-8"))["accounting"]
    assert [accounts[name]["max_length"] for name in ("data", "tokens")] == [None, 1234]


def test_a_report_on_nothing_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"inputs\.NAME=DIR"):
        run_report({}, tmp_path / "report")


def test_boxes_of_the_lineage_do_not_overlap_and_edges_lead_down(inputs: dict[str, Path]) -> None:
    tree = lineage.walk(inputs.values())
    layout = lay_out(tree)
    row = {name: depth for depth, layer in enumerate(layout.layers) for name in layer}
    for layer in layout.layers:
        boxes = [name for name in layer if name in tree.nodes]
        gaps = [layout.x[right] - layout.x[left] for left, right in itertools.pairwise(boxes)]
        assert all(gap >= 158 for gap in gaps)
    for node in tree.nodes.values():
        assert all(row[parent] < row[node.id] for parent in node.parents.values())
    assert [[row[name] for name in chain] for chain in layout.chains] == [
        list(range(row[chain[0]], row[chain[-1]] + 1)) for chain in layout.chains
    ]


def test_the_page_is_the_same_each_time(inputs: dict[str, Path], tmp_path: Path, written: Any) -> None:
    run_report(inputs, tmp_path / "again")
    assert (tmp_path / "again/report.html").read_text(encoding="utf-8") == written[1]


def test_scores_are_written_and_read_unchanged(tmp_path: Path) -> None:
    items = made_items("sft")[:5]
    items[0] = items[0]._replace(ideal=None, preference=None)
    write_items(tmp_path, items)
    assert read_items(tmp_path) == items


def test_durations_are_readable() -> None:
    assert [duration(seconds) for seconds in (0.04, 59.9, 184.2, 7800)] == [
        "0.0 s",
        "59.9 s",
        "3 min 04 s",
        "2 h 10 min",
    ]


def test_the_reasonings_length_is_told_where_there_is_any(
    inputs: dict[str, Path], written: tuple[StageResult, str, Any], tmp_path: Path
) -> None:
    (name,) = (name for name, path in inputs.items() if (path / "items.parquet").exists() and "dpo" in path.name)
    reasoned = shutil.copytree(inputs[name], inputs[name].with_name("reasoned-0001"))
    items = enumerate(read_items(reasoned))
    write_items(reasoned, [i._replace(answer="only this", reasoning_tokens=7, answered=n % 4 > 0) for n, i in items])
    run_report({name: reasoned}, tmp_path / "out", resamples=100)
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    for shown in (
        "Reasoning per task",
        "% without an answer",
        "7 tokens of reasoning",
        "All that was said",
        "only this",
    ):
        assert shown in page and shown not in written[1]


def test_what_became_of_sources_is_shown_where_items_have_any(
    inputs: dict[str, Path], written: tuple[StageResult, str, Any], tmp_path: Path
) -> None:
    (name,) = (name for name, path in inputs.items() if (path / "items.parquet").exists() and "dpo" in path.name)
    sourced = shutil.copytree(inputs[name], inputs[name].with_name("sourced-0001"))
    reference = '{"gold": ["A dog."], "passages": ["A dog.", "A cat."]}'
    said = ('"A dog."', '"A cat."', "I don't know.", '"A cow."')
    items = enumerate(read_items(sourced))
    write_items(
        sourced,
        [i._replace(answer=None, response=said[n % 4], reference=reference, scorer="grounded") for n, i in items],
    )
    run_report({name: sourced}, tmp_path / "out", resamples=100)
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    text = " ".join(Page(page).text.split())
    assert "abstained wrong responses that abstain, where the passages hold the answer 0.249" in text
    assert "precision of a response's citations, those of what holds the answer 0.334" in text
    assert "abstained right" in text and "Kept to sources" not in written[1]
