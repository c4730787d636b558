"""What the report says of policies that were trained against one reward model or the worst of two, gold and proxy."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parsed_page import Page
from report_pipeline import Store, made_responses
from run_report import run_report

from posttrain.evaluate.measure.drift_scores import SampledResponse, write_responses
from posttrain.evaluate.measure.ensembles import summarise_members
from posttrain.evaluate.measure.group_scores import summarise_best
from posttrain.evaluate.measure.judgements import Judgement, summarise_judgements
from posttrain.evaluate.measure.pair_scores import ScoredGroup, summarise_pairs
from posttrain.evaluate.measure.probes import PROBES, ProbedGroup, summarise_probes
from posttrain.evaluate.page import drift_rows, lineage
from posttrain.evaluate.page.drift_rows import Drift
from posttrain.evaluate.page.figures import drift_plots

NO_ITEMS = {"summary.json": {"loss": None, "items": None, "too_long": []}}
WORST = {"rewards": [{"kind": "reward_model", "ensemble": {"combine": "worst", "penalty": 0.5}}]}


def with_rewards(policy: str, lift: tuple[float, float]) -> list[SampledResponse]:
    """Return responses of which both reward models see the score, lifted by what the policy found out about each."""
    return [one._replace(rewards=[one.score + lift[0], one.score + lift[1]]) for one in made_responses(policy)]


def add_drift(store: Store, name: str, responses: list[SampledResponse], parents: dict[str, Path]) -> Path:
    folder = store.root / f".{name}"
    folder.mkdir(parents=True)
    write_responses(folder, responses)
    return store.add(name, "drift", "evaluate.drift", parents, {"summary.json": {}})


@pytest.fixture
def drifts(tmp_path: Path) -> list[Drift]:
    store = Store(tmp_path)
    sft = store.add("sft", "model", "train.sft")
    judges: dict[str, Path] = {
        name: store.add(name, "reward_model", "train.reward", {"model": sft}) for name in ("first", "second")
    }
    both = {"reward": judges["first"], "reward_2": judges["second"]}
    one: dict[str, Any] = {"config": {"rewards": [{"kind": "reward_model"}]}}
    models = {
        "sft": sft,
        "one": store.add("one", "model", "train.ppo", {"model": sft, "reward": judges["second"]}, **one),
        "worst": store.add("worst", "model", "train.ppo", {"model": sft, **both}, config=WORST),
    }
    judged = {"reference": sft, "reward_model": judges["first"], "reward_model_2": judges["second"]}
    said = {
        "sft": with_rewards("sft", (0.0, 0.0)),
        "one": with_rewards("dpo", (0.0, 3.0)),
        "worst": with_rewards("ppo", (0.5, 2.0)),
    }
    made = [add_drift(store, f"drift_{n}", said[n], {"model": models[n], **judged}) for n in models]
    return drift_rows.drifts_of(lineage.walk(made), 0.95, 100, 0)


def test_each_policy_is_shown_by_the_reward_that_it_was_trained_on(drifts: list[Drift]) -> None:
    by_label = {drift.label: drift for drift in drifts}
    assert {label: drift.method for label, drift in by_label.items()} == {
        "sft": "SFT",
        "one": "PPO",
        "worst": "PPO, worst of 2",
    }
    assert by_label["sft"].change is None
    # Gold rose by 0.2 and 0.1 for every response; the proxy by that and by what was found out about the judge.
    for label, gold, proxy in (("one", 0.2, 3.2), ("worst", 0.1, 0.6)):
        change = by_label[label].change
        assert change is not None
        assert (change["score"]["value"], change["proxy"]["value"]) == pytest.approx((gold, proxy))
        assert (change["proxy"]["low"], change["proxy"]["high"]) == pytest.approx((proxy, proxy))


def test_gold_and_proxy_are_drawn_where_the_reward_is_known(drifts: list[Drift]) -> None:
    svg = drift_plots.gold_and_proxy(drifts, "figure")
    assert svg is not None
    assert all(text in svg for text in ("gold: the score", "proxy: the reward", "PPO, worst of 2"))
    assert drift_plots.gold_and_proxy([drift for drift in drifts if drift.is_origin], "figure") is None


def test_the_page_shows_ensembles_probes_and_the_best_of_each_group(tmp_path: Path) -> None:
    store = Store(tmp_path)
    judges = [store.add(name, "reward_model", "train.reward") for name in ("first", "second")]
    data = store.add("gold_tokens", "tokens", "data.tokenize")
    groups = [
        ScoredGroup(f"g{n}", "s", "t", "en", [1, 1, 2, 2], [2.0 + n % 3, 1.0, 0.0, n % 2], [3, 2, 3, 2])
        for n in range(30)
    ]
    rewards = np.array([[reward + shift for group in groups for reward in group.rewards] for shift in (0.0, 0.5)])
    probes = {name: [1.0, None, 0.0, 0.0] for name in PROBES}
    probed = [ProbedGroup(group.id, group.ranks, group.rewards, {**probes}) for group in groups]
    summary = summarise_pairs(groups) | {
        "best_of": summarise_best(groups),
        "ensemble": summarise_members(groups, rewards, ["first", "second"], 0.5, 0.95) | {"combine": "worst"},
        "probes": summarise_probes(probed),
        "probed_groups": 30,
    }
    parents = {"model": judges[0], "model_2": judges[1], "data": data}
    scores = store.add("evaluate_both", "scores", "evaluate.reward", parents, {"summary.json": summary})
    run_report({"evaluate_both": scores}, tmp_path / "out")
    text = re.sub(r"\s+", " ", Page((tmp_path / "out/report.html").read_text(encoding="utf-8")).text)
    for said in (
        "first and 1 more",
        "What it falls for",
        "flattery",
        "The best of each group",
        "2 reward models",
        "worst of all",
    ):
        assert said in text
    best = summary["best_of"]["overall"]["best"]
    assert f"{best['value']:.3f} [{best['low']:.3f}, {best['high']:.3f}]" in text


def test_the_page_shows_what_judges_said(tmp_path: Path) -> None:
    store = Store(tmp_path)
    sft = store.add("sft", "model", "train.sft")
    dpo = store.add("dpo", "model", "train.dpo", {"model": sft})
    scores = {
        name: store.add(f"evaluate_{name}", "scores", "evaluate.policy", {"model": model}, NO_ITEMS)
        for name, model in (("before", sft), ("after", dpo))
    }
    judged = [Judgement(f"i{n}", "t", "en", f"i{n}", ("second", "first"), (3, 3)) for n in range(30)]
    judged += [Judgement(f"j{n}", "t", "en", f"j{n}", ("first", "first"), (3, 3)) for n in range(10)]
    summary = {"mode": "pairwise", "judge": "a-judge", "items": summarise_judgements(judged), "human": None}
    made = store.add("judge_dpo", "judgement", "evaluate.judge", scores, {"summary.json": summary})
    run_report({"judge_dpo": made}, tmp_path / "out")
    text = re.sub(r"\s+", " ", Page((tmp_path / "out/report.html").read_text(encoding="utf-8")).text)
    wins = summary["items"]["overall"]["win_rate"]
    assert "a-judge" in text and "dpo over sft" in text and "not known" in text
    assert f"{wins['value']:.3f} [{wins['low']:.3f}, {wins['high']:.3f}]" in text
