"""A whole, made-up pipeline of committed artifacts whose figures are known, for tests of the report."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from posttrain.evaluate.measure.drift_scores import SampledResponse, write_responses
from posttrain.evaluate.measure.item_scores import ScoredItem, summarise_items, write_items
from posttrain.evaluate.measure.pair_scores import ScoredGroup, summarise_pairs
from posttrain.stage.artifact import LOGS, Manifest, Parent, commit, read_manifest
from posttrain.stage.files import sha256_text

TASKS = ("abstention", "arithmetic", "classification", "extraction", "refusal")
LANGUAGES = ("de", "en", "es")
HOSTILE = "<script>alert('x')</script> & $x_1$"
SKILL = {"base": 0.04, "sft": 0.78, "dpo": 0.82}
LIKING = {"base": -0.05, "sft": 0.55, "dpo": 0.68}
DRIFT = {"sft": 0.0, "dpo": 6.0, "ppo": 2.5}
GAIN = {"sft": 0.0, "dpo": 0.2, "ppo": 0.1}


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
            "config": {},
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
    data = build_data(store)
    models = build_models(store, data)
    scores = {
        f"evaluate_{name}": with_items(
            store,
            f"evaluate_{name}",
            name,
            {"model": models[name], "data": models["sft_tokens"], "items": data["evaluation_items"]},
        )
        for name in ("dpo", "base", "sft")
    }
    scores["evaluate_reward"] = store.add(
        "evaluate_reward",
        "scores",
        "evaluate.reward",
        {"model": models["reward"], "data": models["gold_tokens"]},
        {"summary.json": summarise_pairs(made_groups())},
        headline="accuracy 0.84 ± 0.02",
    )
    drifts = {
        f"drift_{name}": with_responses(
            store, name, {"model": models[name], "reference": models["sft"], "items": data["evaluation_items"]}
        )
        for name in DRIFT
    }
    return scores | drifts


def made_responses(policy: str) -> list[SampledResponse]:
    """Return two responses to each of 60 items; what a policy gained and how far it went is the same for all items."""
    found = []
    for number in range(120):
        luck = random.Random(number)
        score = luck.random() + GAIN[policy]
        words = [luck.choice("abcdefgh") for _ in range(6 if policy == "ppo" else 8)]
        found.append(
            SampledResponse(
                id=f"item-{number // 2:03d}",
                task=TASKS[number % 5],
                language=LANGUAGES[number % 3],
                sample=number % 2,
                prompt="What is it?",
                response=" ".join(words),
                tokens=len(words) + 2,
                ended=number % 10 > 0,
                correct=1.0,
                preference=score,
                score=score,
                kl=DRIFT[policy] * luck.uniform(0.5, 1.5),
                k3=DRIFT[policy] * luck.uniform(0.9, 1.1),
                reference_logprob=-2.0 * (len(words) + 2) - DRIFT[policy],
            )
        )
    return found


def with_responses(store: Store, policy: str, parents: dict[str, Path]) -> Path:
    """Commit what `evaluate.drift` makes of a policy."""
    temporary = store.root / f".drift_{policy}"
    temporary.mkdir(parents=True)
    write_responses(temporary, made_responses(policy))
    return store.add(f"drift_{policy}", "drift", "evaluate.drift", parents, {"summary.json": {}})


def build_data(store: Store) -> dict[str, Path]:
    """Commit the sources and the datasets curated from them."""
    sources = store.add("sources", "sources", "data.demo", licenses=["CC0-1.0"], headline="15 150 rows")
    rows = {
        "demonstrations": {"demo": 12_000},
        "comparisons": {"careful": 700, "hasty": 700, "wordy": 600},
        "gold_comparisons": {"gold": 300},
        "evaluation_items": {"demo": 454},
    }
    return {
        name: store.add(
            name,
            "dataset",
            "data.curate",
            {"sources": sources},
            {"accounting.json": accounting(of_source)},
            headline=f"{sum(of_source.values()) - 4 * len(of_source)} rows kept",
        )
        for name, of_source in rows.items()
    }


def build_models(store: Store, data: dict[str, Path]) -> dict[str, Path]:
    """Commit the base model, the tokens made with it, and the models trained on them."""
    base = store.add("base", "model", "train.base", {"data": data["demonstrations"]}, headline="1.4 M parameters")
    made = {"base": base}
    names = {"sft": "demonstrations", "preference": "comparisons", "gold": "gold_comparisons"}
    for name, dataset in names.items():
        made[f"{name}_tokens"] = store.add(
            f"{name}_tokens",
            "tokens",
            "data.tokenize",
            {"data": data[dataset], "model": base},
            {"accounting.json": accounting({"demo": 11_996}, **TOKENS)},
            tokens=812_345,
        )
    log = training_log(600, {"loss": (6.6, 0.4), "grad_norm": (4, 0.6)}, {"eval_loss": (5.9, 0.45)})
    sft = made["sft"] = store.add(
        "sft",
        "model",
        "train.sft",
        {"model": base, "data": made["sft_tokens"]},
        {"model.txt": "sft", f"{LOGS}/metrics.jsonl": log},
        headline="eval loss 0.42",
        tokens=5_400_000,
        wall_seconds=184.2,
    )
    preferences = {"model": sft, "data": made["preference_tokens"]}
    made["reward"] = add_reward_model(store, preferences)
    reference = store.add("reference", "reference_logps", "train.reference", preferences, tokens=420_000)
    made["dpo"] = add_dpo(store, preferences | {"reference": reference})
    made["ppo"] = add_ppo(store, {"model": sft, "data": made["preference_tokens"], "reward": made["reward"]})
    return made


def add_reward_model(store: Store, parents: dict[str, Path]) -> Path:
    """Commit a reward model."""
    log = training_log(
        200, {"loss": (0.69, 0.32), "accuracy": (0.5, 0.88), "margin": (0, 1.9)}, {"eval_accuracy": (0.5, 0.86)}
    )
    return store.add(
        "reward",
        "reward_model",
        "train.reward",
        parents,
        {f"{LOGS}/metrics.jsonl": log, "model.txt": "reward"},
        headline="eval accuracy 0.86",
        tokens=900_000,
        wall_seconds=61.0,
    )


def add_dpo(store: Store, parents: dict[str, Path]) -> Path:
    """Commit a policy trained with DPO."""
    log = training_log(
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
    return store.add(
        "dpo",
        "model",
        "train.dpo",
        parents,
        {f"{LOGS}/metrics.jsonl": log, "model.txt": "dpo"},
        headline="eval margin 1.10",
        tokens=1_300_000,
        wall_seconds=73.0,
    )


def add_ppo(store: Store, parents: dict[str, Path]) -> Path:
    """Commit a policy trained with PPO."""
    log = training_log(
        200,
        {
            "loss": (1.1, 0.2),
            "objective/scores": (-0.2, 1.3),
            "objective/kl": (0, 2.6),
            "objective/entropy": (0.6, 0.4),
            "response/length": (18, 14),
        },
        {},
    )
    return store.add(
        "ppo",
        "model",
        "train.ppo",
        parents,
        {f"{LOGS}/metrics.jsonl": log, "model.txt": "ppo"},
        headline="reward 1.300, KL 2.60",
        tokens=2_100_000,
        wall_seconds=151.0,
    )
