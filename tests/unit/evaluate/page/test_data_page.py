"""The page about data on a dataset whose rows each meet a known fate."""

from __future__ import annotations

import json
import os
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from build_artifacts import commit_artifact
from curated_data import Curated, curate, qa, source
from parsed_page import Page
from tokenizers import Tokenizer, models, pre_tokenizers

from posttrain.data.records import Demonstration, read_records
from posttrain.data.steps.trail import read_trail
from posttrain.evaluate import data, report
from posttrain.evaluate.config.data import DataPageConfig
from posttrain.evaluate.config.report import ReportConfig
from posttrain.evaluate.page.data_flow import flow_of
from posttrain.evaluate.page.data_rows import by, figures, measure
from posttrain.evaluate.page.data_samples import differences, drawn, surroundings
from posttrain.stage.entry import Context, StageResult
from posttrain.stage.errors import UsageError
from posttrain.stage.spec import Distributed, StageSpec, Tracking
from posttrain.stage.tracking import NullTracker

HOSTILE = "<script>alert('x')</script> & {{ 7 * 7 }}"
SECRET = "ada.lovelace@analytic-engine.org"
RIVERS = "Mali has the Niger, the Senegal, the Bafing, the Baoulé and a few smaller rivers in the south and west"
WRONG = [("<|im_end|>", "control_token"), ("I'm sorry, but I can't help with that.", "refusal")]


def rows() -> list[dict[str, Any]]:
    plain = [qa(f"What is number {n} of list {chr(97 + n)}{n}?", f"It is {chr(98 + n)} of {n * n}.") for n in range(8)]
    near = [qa("Which rivers does Mali have?", f"{RIVERS} {end}.") for end in ("of it", "there", "here")]
    wrong = [
        qa(f"Say something, {n}.", f"{text} {HOSTILE}"[: None if n == 0 else len(text)])
        for n, (text, _) in enumerate(WRONG)
    ]
    return [*plain, *near, *wrong, plain[0], qa("Whom do I ask about the engine?", f"Write to {SECRET} about it.")]


def dataset(folder: Path, name: str = "rows-0123456789abcdef", **knobs: Any) -> tuple[Path, Curated]:
    folder.mkdir()
    steps = {"order": ["quality", "pii", "near_duplicate"], "quality": {"refusals": "drop"}}
    terms = {"url": "https://data.test/rows", "license": "CC-BY-4.0", "generator": "some-model"}
    second = source(folder, "other", [qa("And you?", "I am fine.")], license="MIT", url="javascript:alert(1)")
    sources = [source(folder, "mine", rows(), **terms), second]
    made = curate(folder, "demonstration", sources, **{"eval_fraction": 0, "steps": steps} | knobs)
    directory = made.output.rename(folder / name)
    return commit_artifact(directory, "dataset", "rows", **made.result.facts), made


def context(stage: str, inputs: dict[str, Path], output: Path) -> Context:
    output.mkdir()
    spec = StageSpec(stage, stage, "test", "0" * 64, "", {}, {}, {}, "", "", "", 0, Distributed(), Tracking())
    return Context(spec, inputs, output, output, NullTracker(), True)


def shown(inputs: dict[str, Path], output: Path, **knobs: Any) -> tuple[StageResult, str, Any]:
    result = data.run(DataPageConfig(**knobs), context("evaluate.data", inputs, output))
    return result, (output / "data.html").read_text(encoding="utf-8"), json.loads((output / "summary.json").read_text())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StageResult, str, Any]:
    directory, _ = dataset(tmp_path_factory.mktemp("store") / "store")
    return directory, *shown({"mine": directory}, directory.parent / "page")


def test_rows_flow_from_step_to_step_and_all_are_accounted_for(made: tuple[Path, StageResult, str, Any]) -> None:
    directory, result, _, summary = made
    flow = summary["mine"]["flow"]
    assert [step["name"] for step in flow] == ["read", "duplicate", "quality", "pii", "near_duplicate"]
    assert [sum(step["kept"].values()) for step in flow] == [16, 15, 13, 13, 11]
    for before, after in pairwise(flow):
        assert before["kept"] == after["rows_in"]
    assert flow[2]["dropped"] == {reason: {"mine": 1} for reason in ("control_token", "refusal")}
    assert flow[-1]["kept"] == {"mine": 10, "other": 1}
    assert result.headline == "mine: 11 of 16 rows kept"
    assert Counter(entry["reason"] for entry in read_trail(directory))["duplicate"] == 1


def test_without_a_trail_everything_happened_while_rows_were_read() -> None:
    account = {"by_source": {"a": {"rows_in": 9, "dropped": {"duplicate": 2, "quarantined": 1}, "noted": {"odd": 4}}}}
    (only,) = flow_of(account, Counter())
    assert (only.kept, only.dropped) == ({"a": 6}, {"duplicate": {"a": 2}, "quarantined": {"a": 1}})
    assert only.noted == {"odd": {"a": 4}}


def test_what_a_later_step_drops_for_the_same_reason_did_not_drop_while_rows_were_read() -> None:
    account = {
        "by_source": {"a": {"rows_in": 9, "dropped": {"refusal": 3}}},
        "flow": [{"step": "quality", "facts": {"limit": 1}}],
    }
    events = Counter({("quality", "dropped", "refusal", "a"): 2, ("quality", "noted", "refusal", "a"): 5})
    read, quality = flow_of(account, events)
    assert (read.dropped, quality.dropped) == ({"refusal": {"a": 1}}, {"refusal": {"a": 2}})
    assert (quality.noted, quality.kept, quality.facts) == ({"refusal": {"a": 5}}, {"a": 6}, {"limit": 1})


def test_the_page_is_whole_and_loads_nothing(made: tuple[Path, StageResult, str, Any]) -> None:
    page = Page(made[2])
    assert page.addresses == ["https://data.test/rows"], "an address that runs code is no link"
    assert "script" not in page.tags and "link" not in page.tags and "@import" not in made[2]
    assert len(page.ids) == len(set(page.ids))
    assert {reference[1:] for reference in page.references} <= set(page.ids)
    assert HOSTILE in page.text


def test_personal_data_is_counted_and_stands_nowhere(made: tuple[Path, StageResult, str, Any]) -> None:
    _, _, page, summary = made
    assert summary["mine"]["personal_data"] == {"email": {"mine": {"rows": 1, "places": 1}}}
    assert SECRET not in page + json.dumps(summary)
    assert "<mark>[EMAIL_1]</mark>" in page


def test_a_near_duplicate_stands_beside_the_row_that_stays(made: tuple[Path, StageResult, str, Any]) -> None:
    assert "<mark>there.</mark>" in made[2] and "<mark>of it.</mark>" in made[2]
    assert "<mark>Mali" not in made[2]


def test_licences_and_terms_of_sources_are_shown(made: tuple[Path, StageResult, str, Any]) -> None:
    assert made[3]["mine"]["licences"] == {"mine": {"CC-BY-4.0": 10}, "other": {"MIT": 1}}
    assert "some-model" in Page(made[2]).text


def test_a_tokenizer_counts_rows_and_those_over_a_limit(made: tuple[Path, StageResult, str, Any]) -> None:
    tokenizer = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    counted = figures(by(measure(made[0], Demonstration, tokenizer).tokens, 0)["mine"], 15)
    words = [
        sum(len(turn.content.split()) for turn in (*row.prompt, *row.completion))
        for row in read_records(made[0] / "train.parquet", Demonstration)
        if row.source == "mine"
    ]
    assert (counted["total"], counted["max"]) == (sum(words), max(words))
    assert counted["over_limit"] == sum(count > 15 for count in words) > 0


def test_samples_follow_from_the_seed(made: tuple[Path, StageResult, str, Any]) -> None:
    ones = [drawn(made[0], Demonstration, 1, seed).samples for seed in (0, 0, 1, 2, 3)]
    assert ones[0] == ones[1] and len({str(samples) for samples in ones}) > 1
    assert all(len(own) == 1 for own in ones[0].values())
    assert drawn(made[0], Demonstration, 0, 0).samples == {}


def test_the_report_leads_to_the_page(made: tuple[Path, StageResult, str, Any]) -> None:
    store = made[0].parent
    page = commit_artifact(store / "page", "data_page", "page", {"mine": made[0]})
    report.run(ReportConfig(), context("evaluate.report", {"page": page}, store / "report"))
    written = Page((store / "report" / "report.html").read_text(encoding="utf-8"))
    assert [Path(os.path.normpath(store / "report" / at)) for at in written.addresses] == [page / "data.html"]


def test_a_page_about_nothing_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"inputs\.NAME=DIR"):
        shown({}, tmp_path / "page")


def test_differences_are_whole_words_and_lose_nothing() -> None:
    left, right = differences("the cat sat on  the mat", "the dog sat on  a mat today")
    assert "".join(text for text, _ in left) == "the cat sat on  the mat"
    assert "".join(text for text, _ in right) == "the dog sat on  a mat today"
    assert [text.strip() for text, apart in left if apart] == ["cat", "the"]
    assert [text.strip() for text, apart in right if apart] == ["dog", "a", "today"]


def test_the_surroundings_of_placeholders_are_short() -> None:
    text = "x" * 500 + " [EMAIL_1] or [PHONE_12] " + "y" * 500
    found = list(surroundings(text))
    assert [piece for piece, apart in found if apart] == ["[EMAIL_1]", "[PHONE_12]"]
    assert sum(len(piece) for piece, _ in found) < 200 and " or " in [piece for piece, _ in found]
