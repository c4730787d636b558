"""The demo's data: every answer is right, splits are clean, and counts are as asked."""

import json
import random
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from forked_stages import run_child

from posttrain.data import demo
from posttrain.data.checks.scorers import preference_score, score
from posttrain.data.config.demo import AnnotatorConfig, DemoConfig
from posttrain.data.made.demo_families import FAMILIES
from posttrain.data.made.demo_words import LEXICONS, TOOL_VERBS
from posttrain.data.records import untied_pairs
from posttrain.stage.artifact import read_manifest
from posttrain.stage.errors import UsageError

SIZES = {"texts": 90, "demonstrations": 600, "comparisons": 150, "gold_comparisons": 60, "evaluation_items": 90}
SUM = re.compile(r"\d+ [+-] \d+")
FILES = ("demonstrations", "comparisons", "gold_comparisons", "evaluation", "text")


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def generate(directory: Path, seed: int = 0, **knobs: Any) -> dict[str, list[dict[str, Any]]]:
    directory.mkdir(parents=True, exist_ok=True)
    sizes = {f"num_{name}": size for name, size in SIZES.items()}
    context: Any = SimpleNamespace(spec=SimpleNamespace(seed=seed), output=directory)
    demo.run(DemoConfig(**{**sizes, **knobs}), context)
    return {name: [json.loads(line) for line in _lines(directory / f"{name}.jsonl")] for name in FILES}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    return generate(tmp_path_factory.mktemp("sources"))


def problems(family: str, count: int = 200) -> list[demo.Problem]:
    rng = random.Random(1)
    return [FAMILIES[family](rng, language) for language in LEXICONS for _ in range(count)]


def test_stage_commits_the_five_files_as_sources(tmp_path: Path) -> None:
    sizes = [f"num_{name}=15" for name in SIZES]
    arguments = [f"output={tmp_path / 'demo'}", "seed=3", "tracking.wandb=disabled", *sizes]
    code, _ = run_child("posttrain.data.demo", arguments, tmp_path)  # a stage takes over the signals of its process
    manifest = read_manifest(tmp_path / "demo")
    assert code == 0
    assert (manifest.kind, manifest.seed, manifest.licenses) == ("sources", 3, ["CC0-1.0"])
    assert set(manifest.files) == {f"{name}.jsonl" for name in FILES}
    assert manifest.metrics == dict.fromkeys(FILES, 15)


def test_seed_decides_every_byte(tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        generate(tmp_path / name, seed)
    same = [(tmp_path / "a" / f"{f}.jsonl").read_bytes() == (tmp_path / "b" / f"{f}.jsonl").read_bytes() for f in FILES]
    other = [
        (tmp_path / "a" / f"{f}.jsonl").read_bytes() == (tmp_path / "c" / f"{f}.jsonl").read_bytes() for f in FILES
    ]
    assert all(same)
    assert not any(other)


def test_no_prompt_occurs_twice_in_all_files(rows: dict[str, list[dict[str, Any]]]) -> None:
    prompts = [row["prompt"][0]["content"] for name in FILES if name != "text" for row in rows[name]]
    assert len(prompts) == 600 + 150 + 60 + 90
    assert len(set(prompts)) == len(prompts)


def test_demonstrations_show_hard_families_more_often(tmp_path: Path) -> None:
    shares = {"arithmetic": 3, "refusal": 2}
    rows = generate(tmp_path, num_demonstrations=480, demonstration_shares=shares)["demonstrations"]
    cells = Counter((row["task"], row["language"]) for row in rows)
    # 3 + 2 + 1 + 1 + 1 = 8 parts of 160 rows for each of three languages
    assert {cells["arithmetic", language] for language in LEXICONS} == {60}
    assert {cells["refusal", language] for language in LEXICONS} == {40}
    assert {cells["extraction", language] for language in LEXICONS} == {20}


def test_other_files_are_even_over_families_and_languages(rows: dict[str, list[dict[str, Any]]]) -> None:
    for name in ("comparisons", "gold_comparisons", "evaluation"):
        cells = Counter((row["task"], row["language"]) for row in rows[name])
        assert set(cells.values()) == {len(rows[name]) // 15}
        assert len(cells) == 15


def test_held_out_sums_are_never_shown(rows: dict[str, list[dict[str, Any]]]) -> None:
    def sums(name: str) -> set[str]:
        return {found for row in rows[name] for found in SUM.findall(json.dumps(row))}

    shown = sums("demonstrations") | sums("comparisons") | sums("text")
    kept = sums("gold_comparisons") | sums("evaluation")
    assert len(shown) > 100
    assert len(kept) > 10
    assert not shown & kept


@pytest.mark.parametrize("family", FAMILIES)
def test_ideal_responses_are_right_and_the_wrong_ones_wrong(family: str) -> None:
    for problem in problems(family):
        assert preference_score(problem.ideal, problem.reference, problem.scorer, problem.ideal) == 1.0
        assert len(set(problem.wrong)) >= 3
        assert problem.ideal not in problem.wrong
        refused = (*problem.wrong, *problem.curt)
        assert [score(problem.scorer, wrong, problem.reference) for wrong in refused] == [0.0] * len(refused)
        assert len(set(problem.curt)) >= 2
        assert all(len(curt.split()) < len(problem.ideal.split()) for curt in problem.curt)
        if problem.made_up is not None:
            assert score(problem.scorer, problem.made_up, problem.reference) == 0.0


@pytest.mark.parametrize("family", FAMILIES)
def test_filler_never_makes_a_right_response_wrong(family: str) -> None:
    rng = random.Random(2)
    for problem in problems(family):
        assert (
            score(problem.scorer, demo.padded(problem.ideal, problem.language, 1.0, 1.0, rng), problem.reference) == 1.0
        )


def test_arithmetic_references_are_the_sums(rows: dict[str, list[dict[str, Any]]]) -> None:
    for problem in problems("arithmetic"):
        left, operator, right = problem.content.split()
        total = int(left) + int(right) if operator == "+" else int(left) - int(right)
        assert problem.reference == str(total)
        assert 0 <= total <= 99


def test_languages_name_the_same_concepts() -> None:
    english = LEXICONS["en"]
    for words in LEXICONS.values():
        for field in ("goods", "labels", "subjects", "praise", "blame", "plain", "belongings"):
            assert len(getattr(words, field)) == len(set(getattr(words, field))) == len(getattr(english, field))
        for field in ("things", "people", "foods", "targets", "fuels"):
            assert len(getattr(words, field)) == len(set(getattr(words, field))) == len(getattr(english, field))
        assert len(words.verbs) == len(set(words.verbs.values())) == len(english.verbs)
        assert tuple(words.tools) == TOOL_VERBS


def test_demonstrations_are_imperfect_at_the_configured_rates(tmp_path: Path) -> None:
    def measure(name: str, **rates: float) -> tuple[float, float, float]:
        rows = generate(tmp_path / name, num_demonstrations=3000, **rates)["demonstrations"]
        replies = [(row["completion"][0]["content"], LEXICONS[row["language"]]) for row in rows]
        openings = [any(text.startswith(o) for o in words.openings) for text, words in replies]
        closings = [any(text.endswith(c) for c in words.closings) for text, words in replies]
        abstaining = [text for text, words in replies if words.abstention in text]
        return sum(openings) / len(rows), sum(closings) / len(rows), len(abstaining) / (3000 * 2 / 9 * 0.4)

    clean = measure("clean", opening_rate=0.0, closing_rate=0.0, missing_abstention_rate=0.0)
    assert clean == (0.0, 0.0, pytest.approx(1.0, abs=0.15))
    opened, closed, abstaining = measure("imperfect", opening_rate=0.3, closing_rate=0.6, missing_abstention_rate=0.5)
    assert opened == pytest.approx(0.3, abs=0.04)
    assert closed == pytest.approx(0.6, abs=0.04)
    assert abstaining == pytest.approx(0.5, abs=0.12)


@pytest.mark.parametrize("name", ["comparisons", "gold_comparisons"])
def test_length_does_not_tell_the_better_response(name: str, tmp_path: Path) -> None:
    rows = generate(tmp_path, num_comparisons=600, num_gold_comparisons=600)[name]
    shorter, longer = Counter[str](), Counter[str]()
    for row in rows:
        words = [len(response.split()) for response in row["responses"]]
        for better, worse in untied_pairs(row["ranks"]):
            shorter[row["task"]] += words[better] < words[worse]
            longer[row["task"]] += words[better] > words[worse]
    assert 0.4 < shorter.total() / (shorter.total() + longer.total()) < 0.6
    assert all(0.35 < shorter[task] / (shorter[task] + longer[task]) < 0.65 for task in FAMILIES)


def test_gold_ranks_follow_the_true_preference(rows: dict[str, list[dict[str, Any]]]) -> None:
    ideals = 0
    for row in rows["gold_comparisons"]:
        assert row["annotator"] == "gold"
        assert len(set(row["responses"])) == 4
        best = [response for response, rank in zip(row["responses"], row["ranks"], strict=True) if rank == 1]
        ideals += len(best) == 1 and not any(mark in best[0] for mark in "!¡")
    assert ideals == len(rows["gold_comparisons"])


def test_annotators_differ_in_noise_and_length_bias(tmp_path: Path) -> None:
    annotators = [
        AnnotatorConfig(name="exact", noise=0.0),
        AnnotatorConfig(name="random", noise=50.0),
        AnnotatorConfig(name="wordy", noise=0.0, length_bias=10.0),
    ]
    rows = generate(tmp_path, num_comparisons=450, annotators=annotators)["comparisons"]
    by_name: dict[str, list[tuple[bool, bool]]] = {}
    for row in rows:
        best = row["responses"][row["ranks"].index(1)]
        lengths = [len(response.split()) for response in row["responses"]]
        ideal = not any(filler in best for words in LEXICONS.values() for filler in (*words.openings, *words.closings))
        by_name.setdefault(row["annotator"], []).append((ideal, len(best.split()) == max(lengths)))
    assert Counter(row["annotator"] for row in rows) == {"exact": 150, "random": 150, "wordy": 150}
    assert all(ideal for ideal, _ in by_name["exact"])
    assert all(longest for _, longest in by_name["wordy"])
    assert 0.2 < sum(ideal for ideal, _ in by_name["random"]) / 150 < 0.6


def test_an_annotator_of_the_opposite_taste_likes_what_is_wrong() -> None:
    contrary = AnnotatorConfig(name="contrary", noise=0.0, taste=-1.0)
    for problem in problems("extraction", count=20):
        right, wrong = (
            demo.annotated(response, problem, contrary, random.Random(0))
            for response in (problem.ideal, problem.curt[0])
        )
        assert (right, wrong) == (-1.0, 0.0)


def test_more_rows_than_prompts_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"num_evaluation_items: \w+ \(\w+\) has no unused prompt left"):
        generate(tmp_path, num_evaluation_items=60000)


def test_text_shows_no_request(rows: dict[str, list[dict[str, Any]]]) -> None:
    assert not [row for row in rows["text"] if "?" in row["text"] or "JSON" in row["text"]]
    assert Counter(row["language"] for row in rows["text"]) == {"en": 30, "es": 30, "de": 30}
