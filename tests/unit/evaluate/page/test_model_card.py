"""Model cards: metadata that the Hub's own library reads, and what a reader must know, out of the store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from report_pipeline import Store, build_pipeline, made_items, with_items

from posttrain.evaluate.page.model_card import model_card
from posttrain.pipeline.commands.keeping.export import card_of, evaluations_about
from posttrain.stage.artifact import MANIFEST


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    root = tmp_path_factory.mktemp("outputs") / "artifacts"
    build_pipeline(root)
    return Store(root)


def artifact(store: Store, stage: str) -> Path:
    (found,) = store.root.glob(f"{stage}-*")
    return found


def amend(directory: Path, **changes: Any) -> None:
    path = directory / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def read(text: str) -> tuple[ModelCardData, str]:
    """Return metadata and text of a card, as the Hub's library reads them."""
    card = ModelCard(text)
    return card.data, card.text


def test_results_carry_their_intervals(store: Store) -> None:
    data, text = read(card_of(store.root.parent, artifact(store, "dpo"), "mine", merge=False))
    assert (data.library_name, data.pipeline_tag, data.model_name) == ("transformers", "text-generation", "mine")
    assert data.tags == ["posttrain", "sft", "dpo"]
    assert data.language == ["de", "en", "es"]
    results: list[EvalResult] = data.eval_results or []
    exact = next(one for one in results if one.dataset_config == "all" and one.metric_type == "exact_match")
    right = sum(item.correct for item in made_items("dpo"))
    assert exact.metric_value == pytest.approx(right / 450, abs=1e-6)
    assert exact.metric_args is not None and exact.metric_args["n"] == 450
    assert exact.metric_args["low"] < exact.metric_value < exact.metric_args["high"]
    assert {one.dataset_config for one in results} >= {"task: arithmetic", "language: es", "held-out rows"}
    assert "| exact match | sft |" in text  # against the model that it was made from
    assert "safety was not measured" in text  # no item asks for what should be refused


def test_a_card_says_where_a_model_is_from_and_what_it_may_be_used_under(tmp_path: Path) -> None:
    store = Store(tmp_path / "artifacts")
    data = store.add("rows", "dataset", "data.curate", licenses=["Apache-2.0"])
    sources = [{"name": "a|b", "dataset": "org/rows", "license": "Apache-2.0", "revision": "abc"}, {"name": "c"}]
    terms = {"generator": "some-model", "generator_uses": ["research", "commercial"]}
    facts = {"sources": {"a|b": terms}, "licenses": {"a|b": {"Apache-2.0": 1200, "MIT": 3}}}
    amend(data, config={"record_type": "demonstration", "sources": sources}, facts=facts)
    base = store.add("base", "model", "train.base", licenses=["Apache-2.0"])
    amend(base, facts={"hub_name": "org/base", "commit": "f" * 40})
    tuned = store.add("sft", "model", "train.sft", {"model": base, "data": data}, licenses=["Apache-2.0"])
    metadata, text = read(model_card(tuned, [], "mine", True, "posttrain run recipe=own/sft"))
    assert metadata.base_model == "org/base" and metadata.to_dict()["base_model_relation"] == "adapter"
    assert (metadata.license, metadata.datasets, metadata.library_name) == ("apache-2.0", ["org/rows"], "peft")
    assert metadata.eval_results is None and "It was not evaluated" in text
    assert (
        "Apache-2.0 (1,200 rows), MIT (3 rows) | generator some-model; its terms allow research, commercial |" in text
    )
    assert "a\\|b" in text and "posttrain run recipe=own/sft" in text and "AutoPeftModelForCausalLM" in text
    amend(tuned, licenses=["Apache-2.0", "unknown"])
    metadata, text = read(model_card(tuned, [], "mine", False, None))
    assert (metadata.license, metadata.license_name) == ("other", "apache-2.0-and-unknown")
    assert "licence of some of its data is not known" in text


def test_a_reward_model_is_told_by_its_pairs(store: Store) -> None:
    data, text = read(card_of(store.root.parent, artifact(store, "reward"), "judge", merge=False))
    (result,) = data.eval_results or []
    assert (data.pipeline_tag, result.metric_type) == ("text-classification", "accuracy")
    assert "Always preferring the longer response" in text and "To compare responses to one prompt" in text


def test_only_evaluations_of_the_models_own_line_count_and_a_failed_gate_is_told(tmp_path: Path) -> None:
    store = Store(tmp_path / "artifacts")
    base = store.add("base", "model", "train.base")
    models = {name: store.add(name, "model", f"train.{name}", {"model": base}) for name in ("sft", "dpo")}
    scores = {name: with_items(store, f"evaluate_{name}", name, {"model": path}) for name, path in models.items()}
    verdict = {"model": "dpo", "state": "failed", "reasons": ["arithmetic fell"], "findings": [], "worse": {}}
    parents = {"before": scores["sft"], "after": scores["dpo"]}
    gate = store.add("gate_dpo", "verdict", "evaluate.gate", parents, {"verdict.json": verdict})
    (store.root / "broken-0").mkdir()
    (store.root / "broken-0" / MANIFEST).write_text("{")  # a neighbour's damage is not the model's
    assert set(evaluations_about(models["dpo"])) == {scores["dpo"], gate}
    assert evaluations_about(models["sft"]) == [scores["sft"]]
    assert "failed (must not be built upon): arithmetic fell" in card_of(tmp_path, models["dpo"], "mine", merge=False)
