"""The report on a whole, made-up pipeline whose figures are known."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from posttrain.evaluate import compare, lineage, plots, report
from posttrain.evaluate.config import ReportConfig
from posttrain.evaluate.item_scores import ScoredItem, summarise_items, write_items
from posttrain.evaluate.lineage_svg import lay_out
from posttrain.evaluate.pair_scores import ScoredGroup, summarise_pairs
from posttrain.stage.artifact import LOGS, Manifest, Parent, commit, read_manifest
from posttrain.stage.entry import Context, StageResult
from posttrain.stage.errors import UsageError
from posttrain.stage.files import sha256_text
from posttrain.stage.spec import StageSpec, Tracking
from posttrain.stage.tracking import NullTracker

TASKS = ("abstention", "arithmetic", "classification", "extraction", "refusal")
LANGUAGES = ("de", "en", "es")
HOSTILE = "<script>alert('x')</script> & $x_1$"
SKILL = {"base": 0.04, "sft": 0.78, "dpo": 0.82}
LIKING = {"base": -0.05, "sft": 0.55, "dpo": 0.68}


class Store:
    """An artifact root that grows by committed artifacts."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def add(
        self,
        stage: str,
        kind: str,
        run: str,
        parents: dict[str, Path] | None = None,
        files: dict[str, Any] | None = None,
        **manifest: Any,
    ) -> Path:
        """Commit an artifact; ``files`` maps names to texts or JSON values."""
        key = sha256_text(stage)
        final = self.root / f"{stage}-{key[:16]}"
        temporary = self.root / f".{stage}"
        temporary.mkdir(parents=True, exist_ok=True)
        for name, value in (files or {"stage.txt": stage}).items():
            path = temporary / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
        described: dict[str, Any] = {
            "headline": "",
            "tokens": 0,
            "wall_seconds": 1.5,
            "metrics": {},
            "licenses": [],
        } | manifest
        manifests = {name: read_manifest(path) for name, path in (parents or {}).items()}
        commit(
            temporary,
            final,
            Manifest(
                kind=kind,
                stage=stage,
                run=run,
                key=key,
                digest="",
                files={},
                parents={
                    name: Parent(manifests[name].kind, manifests[name].digest, path.name)
                    for name, path in (parents or {}).items()
                },
                config={},
                code_digest="0" * 64,
                seed=0,
                created="2030-01-02T03:04:05Z",
                packages={"python": "3.12.1", "torch": "2.13.0", "transformers": "5.23.0"},
                hardware={"machine": "x86_64", "cpus": 2, "processes": 1, "accelerators": []},
                facts={},
                **described,
            ),
        )
        return final


def made_items(policy: str) -> list[ScoredItem]:
    """Return 450 scored items, 30 for each task and language; arithmetic is the hardest task."""
    rng = random.Random(policy)
    items = []
    for number in range(450):
        task, language = TASKS[number % 5], LANGUAGES[number // 5 % 3]
        skill = SKILL[policy] - (0.25 if task == "arithmetic" and policy != "base" else 0)
        correct = float(random.Random(number).random() < skill)
        preference = LIKING[policy] + 0.3 * correct + rng.gauss(0, 0.1)
        response = f"{policy} says {number % 90}" + (" and so on" * 30 if number % 50 == 0 else "")
        items.append(
            ScoredItem(
                id=f"item-{number:03d}",
                task=task,
                language=language,
                prompt=f"What is {number % 45} + {number % 45}?",
                response=response if number % 7 else f"{response}\n{HOSTILE}",
                reference=str(number % 90),
                ideal=f"The answer is {number % 90}.",
                scorer="number",
                correct=correct,
                preference=preference,
                ended=policy != "base" or number % 3 == 0,
            )
        )
    return items


def made_groups() -> list[ScoredGroup]:
    """Return 300 groups of four responses whose rewards follow their ranks with noise."""
    rng = random.Random(0)
    groups = []
    for number in range(300):
        source = ("careful", "hasty", "wordy")[number % 3]
        ranks = rng.sample([1, 2, 3, 4], 4) if number % 5 else [1, 1, 2, 3]
        rewards = [-0.9 * rank + rng.gauss(0, 0.8) for rank in ranks]
        lengths = [rng.randint(5, 40) for _ in ranks]
        groups.append(
            ScoredGroup(f"group-{number}", source, TASKS[number % 5], LANGUAGES[number % 3], ranks, rewards, lengths)
        )
    return groups


def accounting(sources: dict[str, int], **extra: Any) -> dict[str, Any]:
    """Return an accounting in which each source loses three duplicates and one malformed row."""
    by_source = {
        name: {
            "rows_in": rows,
            "kept": rows - 4,
            "dropped": {"duplicate": 3, "malformed": 1},
            "train": rows - 44,
            "eval": 40,
        }
        for name, rows in sources.items()
    }
    total = {field: sum(entry[field] for entry in by_source.values()) for field in ("rows_in", "kept")}
    dropped = {"duplicate": 3 * len(sources), "malformed": len(sources)}
    return {**total, "dropped": dropped, "by_source": by_source, **extra}


TOKENS = {
    "truncated": 2,
    "responses_dropped": 5,
    "tokens": {
        "total": 812_345,
        "p50": 61,
        "p95": 118,
        "max": 196,
        "by_language": {
            "de": {"rows": 4000, "tokens": 300_000, "tokens_per_word": 2.31},
            "en": {"rows": 4000, "tokens": 250_000, "tokens_per_word": 1.62},
            "es": {"rows": 3988, "tokens": 262_345, "tokens_per_word": 1.93},
        },
    },
}


def training_log(steps: int, names: dict[str, tuple[float, float]], held_out: dict[str, tuple[float, float]]) -> str:
    """Return a metrics.jsonl whose values run from the first figure to the second."""
    rng = random.Random(steps)
    lines = []
    for step in range(10, steps + 1, 10):
        share = 1 - math.exp(-4 * step / steps)
        row = {"step": step, "seconds": step / 5}
        row |= {
            name: start + (end - start) * share + rng.gauss(0, 0.02 * abs(end - start))
            for name, (start, end) in names.items()
        }
        if step % (steps // 5) == 0:
            row |= {name: start + (end - start) * share for name, (start, end) in held_out.items()}
        lines.append(json.dumps(row))
    return "\n".join(lines) + "\n"


def with_items(store: Store, stage: str, policy: str, parents: dict[str, Path]) -> Path:
    """Commit the scores of a policy."""
    temporary = store.root / f".{stage}"
    temporary.mkdir(parents=True)
    items = made_items(policy)
    write_items(temporary, items)
    loss = {"base": 6.61, "sft": 0.42, "dpo": 0.55}[policy]
    figures = {"loss": loss, "perplexity": math.exp(loss), "rows": 600, "tokens": 12_000}
    summary = {
        "loss": {
            "overall": figures,
            "by_task": {task: figures | {"tokens": 2400} for task in TASKS},
            "by_language": {language: figures | {"tokens": 4000} for language in LANGUAGES},
        },
        "items": summarise_items(items),
        "too_long": [],
    }
    match = sum(item.correct for item in items) / len(items)
    return store.add(
        stage,
        "scores",
        "evaluate.policy",
        parents,
        {"summary.json": summary},
        headline=f"exact match {match:.2f}",
        tokens=36_000,
        wall_seconds=11.3,
    )


def build_pipeline(root: Path) -> dict[str, Path]:
    """Commit every stage of a pipeline; return what its report takes in."""
    store = Store(root)
    sources = store.add("sources", "sources", "data.demo", licenses=["CC0-1.0"], headline="15 150 rows")
    demonstrations = store.add(
        "demonstrations",
        "dataset",
        "data.curate",
        {"sources": sources},
        {"accounting.json": accounting({"demo": 12_000})},
        headline="11 996 kept of 12 000",
    )
    comparisons = store.add(
        "comparisons",
        "dataset",
        "data.curate",
        {"sources": sources},
        {"accounting.json": accounting({"careful": 700, "hasty": 700, "wordy": 600})},
        headline="1 988 kept of 2 000",
    )
    gold = store.add(
        "gold_comparisons",
        "dataset",
        "data.curate",
        {"sources": sources},
        {"accounting.json": accounting({"gold": 300})},
    )
    evaluation = store.add(
        "evaluation_items",
        "dataset",
        "data.curate",
        {"sources": sources},
        {"accounting.json": accounting({"demo": 454})},
    )
    base = store.add("base", "model", "train.base", {"data": demonstrations}, headline="1.4 M parameters")
    tokens = {
        name: store.add(
            f"{name}_tokens",
            "tokens",
            "data.tokenize",
            {"data": data, "model": base},
            {"accounting.json": accounting({"demo": 11_996}, **TOKENS)},
            tokens=812_345,
        )
        for name, data in (("sft", demonstrations), ("preference", comparisons), ("gold", gold))
    }
    sft_log = training_log(600, {"loss": (6.6, 0.4), "grad_norm": (4, 0.6)}, {"eval_loss": (5.9, 0.45)})
    sft = store.add(
        "sft",
        "model",
        "train.sft",
        {"model": base, "data": tokens["sft"]},
        {"model.txt": "sft", f"{LOGS}/metrics.jsonl": sft_log},
        headline="eval loss 0.42",
        tokens=5_400_000,
        wall_seconds=184.2,
    )
    reward_log = training_log(
        200, {"loss": (0.69, 0.32), "accuracy": (0.5, 0.88), "margin": (0, 1.9)}, {"eval_accuracy": (0.5, 0.86)}
    )
    reward = store.add(
        "reward",
        "reward_model",
        "train.reward",
        {"model": sft, "data": tokens["preference"]},
        {f"{LOGS}/metrics.jsonl": reward_log, "model.txt": "reward"},
        headline="eval accuracy 0.86",
        tokens=900_000,
        wall_seconds=61.0,
    )
    reference = store.add(
        "reference", "reference_logps", "train.reference", {"model": sft, "data": tokens["preference"]}, tokens=420_000
    )
    dpo_log = training_log(
        150,
        {
            "loss": (0.69, 0.41),
            "rewards/accuracies": (0.5, 0.81),
            "rewards/margins": (0, 1.1),
            "rewards/chosen": (0, 0.2),
            "rewards/rejected": (0, -0.9),
        },
        {"eval_loss": (0.69, 0.47), "eval_rewards/accuracies": (0.5, 0.77)},
    )
    dpo = store.add(
        "dpo",
        "model",
        "train.dpo",
        {"model": sft, "data": tokens["preference"], "reference": reference},
        {f"{LOGS}/metrics.jsonl": dpo_log, "model.txt": "dpo"},
        headline="eval margin 1.10",
        tokens=1_300_000,
        wall_seconds=73.0,
    )
    scores = {
        f"evaluate_{name}": with_items(
            store, f"evaluate_{name}", name, {"model": model, "data": tokens["sft"], "items": evaluation}
        )
        for name, model in (("dpo", dpo), ("base", base), ("sft", sft))
    }
    scores["evaluate_reward"] = store.add(
        "evaluate_reward",
        "scores",
        "evaluate.reward",
        {"model": reward, "data": tokens["gold"]},
        {"summary.json": summarise_pairs(made_groups())},
        headline="accuracy 0.84 ± 0.02",
    )
    return scores


def run_report(inputs: dict[str, Path], output: Path, **config: Any) -> StageResult:
    output.mkdir()
    spec = StageSpec("report", "evaluate.report", "demo", "0" * 64, "", {}, {}, {}, "", "", "", 0, 1, Tracking())
    context = Context(spec, inputs, output, output, NullTracker(), main_process=True)
    return report.run(ReportConfig(**config), context)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return build_pipeline(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def written(inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[StageResult, str, Any]:
    output = tmp_path_factory.mktemp("report") / "out"
    result = run_report(inputs, output)
    page = (output / "report.html").read_text(encoding="utf-8")
    return result, page, json.loads((output / "summary.json").read_text(encoding="utf-8"))


class Page(HTMLParser):
    """Collects elements, ids, local links and the text of a page; fails on unbalanced tags."""

    VOID = {"meta", "br", "hr", "img", "link", "input"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self._open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            elif name in ("href", "xlink:href", "src"):
                (self.references if (value or "").startswith("#") else self.addresses).append(value or "")
            self.references += re.findall(r"url\((#[^)]+)\)", value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] != "style":
            self.text += data


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


def test_the_page_is_whole_and_loads_nothing(written: tuple[StageResult, str, Any]) -> None:
    _, page, _ = written
    parsed = Page(page)
    assert parsed.addresses == []
    assert "script" not in parsed.tags and "link" not in parsed.tags and "@import" not in page
    assert len(parsed.ids) == len(set(parsed.ids))
    assert {reference[1:] for reference in parsed.references} <= set(parsed.ids)
    for section in ("changes", "stages", "lineage", "policies", "rewards", "curves", "rows", "samples", "provenance"):
        assert section in parsed.ids
    for text in ("CC0-1.0", "torch 2.13.0", "3 min 04 s", "accuracy 0.84 ± 0.02", "duplicate 3", "held-out"):
        assert text in parsed.text


def test_text_of_the_data_is_shown_as_text(written: tuple[StageResult, str, Any]) -> None:
    assert HOSTILE in Page(written[1]).text


def test_every_stage_of_the_lineage_is_listed(written: tuple[StageResult, str, Any]) -> None:
    _, page, summary = written
    names = {row["stage"] for row in summary["stages"]}
    assert {"sources", "comparisons", "base", "sft_tokens", "reference", "dpo", "evaluate_reward"} <= names
    assert len(summary["stages"]) == 17
    assert all(f">{name}<" in page for name in names)


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


def test_a_removed_parent_is_named_as_missing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    base = store.add("base", "model", "train.base")
    sft = store.add("sft", "model", "train.sft", {"model": base})
    (base / "manifest.json").unlink()
    run_report({"sft": sft}, tmp_path / "report")
    assert "not found beside the artifact made from it" in (tmp_path / "report/report.html").read_text()


def test_a_report_on_data_alone_has_no_policies(tmp_path: Path) -> None:
    files = {"accounting.json": accounting({"a": 100}) | {"rows_in": 101}}
    files["accounting.json"]["by_source"]["a"]["rows_in"] = 101
    dataset = Store(tmp_path).add("data", "dataset", "data.curate", files=files)
    result = run_report({"data": dataset}, tmp_path / "report")
    page = (tmp_path / "report/report.html").read_text(encoding="utf-8")
    assert result.metrics == {"policies": 0, "reward_models": 0}
    assert "does not add up" in page and 'id="policies"' not in page


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
    from posttrain.evaluate.item_scores import read_items

    assert read_items(tmp_path) == items


def test_durations_are_readable() -> None:
    assert [report.duration(seconds) for seconds in (0.04, 59.9, 184.2, 7800)] == [
        "0.0 s",
        "59.9 s",
        "3 min 04 s",
        "2 h 10 min",
    ]
