"""The model card of an export: README.md with the Hub's metadata, out of manifests and evaluations."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from posttrain.evaluate.page.accounting import TERMS, read_account
from posttrain.evaluate.page.compare import (
    METRIC_NAMES,
    Policy,
    compare,
    consecutive,
    policies_of,
)
from posttrain.evaluate.page.lineage import Lineage, Node, walk
from posttrain.evaluate.page.reward_rows import reward_models_of
from posttrain.evaluate.page.templates import page_environment, percent
from posttrain.evaluate.page.two_sides import reading
from posttrain.evaluate.page.verdicts import WORDS, Verdict, verdicts_of

HUB_LICENSES = [
    "apache-2.0",
    "mit",
    "bsd-2-clause",
    "bsd-3-clause",
    "gpl-3.0",
    "lgpl-3.0",
    "agpl-3.0",
    "mpl-2.0",
    "unlicense",
    "cc0-1.0",
    "cc-by-2.0",
    "cc-by-3.0",
    "cc-by-4.0",
    "cc-by-sa-3.0",
    "cc-by-sa-4.0",
    "cc-by-nc-2.0",
    "cc-by-nc-3.0",
    "cc-by-nc-4.0",
    "cc-by-nc-sa-3.0",
    "cc-by-nc-sa-4.0",
    "cc-by-nd-4.0",
    "cc-by-nc-nd-4.0",
    "odc-by",
    "odbl",
    "pddl",
    "openrail",
    "openrail++",
    "bigscience-openrail-m",
    "gemma",
    "llama2",
    "llama3",
    "llama3.1",
    "llama3.2",
    "llama3.3",
    "llama4",
]
"""Licences that the Hub knows by name; others are ``other`` with a name of their own."""
UNKNOWN = "unknown"
_LANGUAGE = re.compile(r"[a-z]{2,3}")
_UNDETERMINED = ("und", "mul", "zxx")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_REFUSING = ("refusal", "refused", "compliance", "complied")
"""Scorers of items that say something of safety."""
_TERMS = ("generator", "generator_uses", "uses")
CONFIDENCE = 0.95


def model_card(artifact: Path, evaluations: Iterable[Path], name: str, is_adapter: bool, command: str | None) -> str:
    """Return the card of a model or reward model.

    ``evaluations`` are scores and verdicts about it and about the models that it descends from; ``is_adapter`` says
    that the export needs its base; ``command`` is what made it, where that is known.
    """
    lineage = walk([artifact, *evaluations])
    model = lineage.nodes[str(artifact.resolve())]
    above = _above(lineage, model)
    policies = policies_of(lineage, CONFIDENCE)
    own = [policy for policy in policies if policy.model == model.id]
    label = lineage.labels()[model.id]
    rewards = [own for of, own in reward_models_of(lineage).items() if of == label or of.startswith(f"{label} (")]
    verdicts = [verdict for verdict in verdicts_of(lineage) if verdict.model == label]
    steps = [(before, after) for before, after in consecutive(lineage, policies) if after.model == model.id]
    paired = [row for before, after in steps for row in compare(before, after, CONFIDENCE, 2000, 0)]
    languages = sorted(_languages(above) | {item.language for policy in own for item in policy.items})
    licenses = sorted(_manifest(model).licenses)
    metadata = _metadata(lineage, model, above, is_adapter, languages, licenses)
    results = [one for policy in own for one in _policy_results(lineage, policy)] + _reward_results(rewards)
    if results:
        metadata["model-index"] = [{"name": name, "results": results}]
    environment = page_environment()
    environment.autoescape = False
    environment.filters["cell"] = _cell
    return environment.get_template("model_card.md.j2").render(
        front_matter=yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True, width=1000).strip(),
        name=name,
        model=model,
        manifest=model.manifest,
        is_adapter=is_adapter,
        base=_base(above),
        policies=[policy for policy in own if policy.figures is not None],
        losses=[policy for policy in own if policy.loss is not None],
        rewards=rewards,
        paired=[(row, reading(row, CONFIDENCE)) for row in paired],
        metric_names=METRIC_NAMES,
        verdicts=verdicts,
        verdict_words=WORDS,
        limits=_limits(own, rewards, verdicts, licenses, above),
        languages=languages,
        tasks=sorted({item.task for policy in own for item in policy.items}),
        data=_data(lineage, above),
        above=above,
        labels=lineage.labels(),
        licenses=licenses,
        command=command,
        percent=percent(CONFIDENCE),
        seconds=sum(node.manifest.wall_seconds for node in above if node.manifest),
    )


def _manifest(node: Node) -> Any:
    assert node.manifest is not None
    return node.manifest


def _above(lineage: Lineage, model: Node) -> list[Node]:
    """Return what a model was made from, parents first, and itself at the end."""
    wanted, waiting = {model.id}, [model.id]
    while waiting:
        fresh = set(lineage.nodes[waiting.pop()].parents.values()) - wanted
        wanted |= fresh
        waiting += fresh
    return [node for node in lineage.nodes.values() if node.id in wanted]


def _base(above: Sequence[Node]) -> dict[str, Any] | None:
    """Return what the base stage says of the model on the Hub that everything began with, if it did so."""
    for node in above:
        if node.manifest is not None and node.manifest.facts.get("hub_name"):
            return node.manifest.facts
    return None


def _languages(above: Sequence[Node]) -> set[str]:
    accounts = [node.manifest.facts.get("accounting", {}) for node in above if node.manifest is not None]
    found = {language for account in accounts for language in account.get("tokens", {}).get("by_language", {})}
    return {language for language in found if _LANGUAGE.fullmatch(language) and language not in _UNDETERMINED}


def _sources(above: Sequence[Node]) -> list[dict[str, Any]]:
    return [
        {"artifact": node.stage} | source
        for node in above
        if node.manifest is not None and node.manifest.run == "data.curate"
        for source in node.manifest.config.get("sources", [])
    ]


def _metadata(
    lineage: Lineage,
    model: Node,
    above: Sequence[Node],
    is_adapter: bool,
    languages: Sequence[str],
    licenses: Sequence[str],
) -> dict[str, Any]:
    base = _base(above)
    stages = [lineage.nodes[one] for one in reversed([model.id, *lineage.model_ancestors(model.id)])]
    methods = [node.manifest.run.rpartition(".")[2] for node in stages if node.manifest is not None]
    found: dict[str, Any] = {"library_name": "peft" if is_adapter else "transformers"}
    found["pipeline_tag"] = "text-generation" if model.kind == "model" else "text-classification"
    if base is not None:
        found |= {"base_model": base["hub_name"], "base_model_relation": "adapter" if is_adapter else "finetune"}
    found |= _license(licenses)
    datasets = {source.get("dataset") for source in _sources(above)}
    if named := sorted(one for one in datasets if one and _HUB_NAME.fullmatch(one)):
        found["datasets"] = named
    if languages:
        found["language"] = list(languages)
    found["tags"] = list(dict.fromkeys(["posttrain", *(method for method in methods if method != "base")]))
    return found


def _license(licenses: Sequence[str]) -> dict[str, str]:
    """Return what the Hub is told: a name that it knows where all is under that one, otherwise ``other``."""
    known = [license.lower() for license in licenses]
    if len(known) == 1 and known[0] in HUB_LICENSES:
        return {"license": known[0]}
    slug = re.sub(r"[^a-z0-9.+-]+", "-", "-and-".join(known) or UNKNOWN).strip("-")
    return {"license": "other", "license_name": slug}


def _policy_results(lineage: Lineage, policy: Policy) -> list[dict[str, Any]]:
    """Return the model-index entries of a policy: all items, each task, each language, and the held-out loss."""
    scores = lineage.nodes[policy.scores]
    results = []
    if policy.figures is not None:
        items = lineage.nodes[scores.parents["items"]] if "items" in scores.parents else scores
        parts = [("all", policy.figures["overall"])]
        parts += [
            (f"{part}: {name}", own)
            for part in ("task", "language")
            for name, own in policy.figures[f"by_{part}"].items()
        ]
        for part, figures in parts:
            metrics = [
                _metric(metric, METRIC_NAMES[metric], figures[metric])
                for metric in METRIC_NAMES
                if figures[metric] is not None
            ]
            results.append(_result(items, part, metrics))
    if policy.loss is not None:
        rows = lineage.nodes[scores.parents.get("data", scores.id)]
        figures = policy.loss["overall"]
        metrics = [
            {"type": name, "value": round(figures[name], 6), "name": f"held-out {name}", "args": {"n": figures["rows"]}}
            for name in ("loss", "perplexity")
        ]
        results.append(_result(rows, "held-out rows", metrics))
    return results


def _reward_results(rewards: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    results = []
    for reward in rewards:
        metric = _metric("accuracy", "accuracy on pairs", reward["overall"]["accuracy"])
        results.append(
            {
                "task": {"type": "text-classification", "name": "preference"},
                "dataset": {"name": "held-out pairs", "type": "comparisons"},
                "metrics": [metric],
            }
        )
    return results


def _result(data: Node, part: str, metrics: list[dict[str, Any]]) -> dict[str, Any]:
    dataset = {"name": f"{data.stage} ({part})", "type": data.stage, "config": part}
    if data.manifest is not None:
        dataset["revision"] = data.manifest.digest[:16]
    return {"task": {"type": "text-generation"}, "dataset": dataset, "metrics": metrics}


def _metric(kind: str, name: str, figure: dict[str, Any]) -> dict[str, Any]:
    low, high = round(figure["low"], 6), round(figure["high"], 6)
    return {
        "type": kind,
        "value": round(figure["value"], 6),
        "name": f"{name} [{low:.3f}, {high:.3f}]",
        "args": {"low": low, "high": high, "n": figure["n"], "confidence": CONFIDENCE},
    }


def _limits(
    policies: Sequence[Policy],
    rewards: Sequence[dict[str, Any]],
    verdicts: Sequence[Verdict],
    licenses: Sequence[str],
    above: Sequence[Node],
) -> list[str]:
    """Return what is known to be wrong with a model, or not known of it, a sentence each."""
    items = [item for policy in policies for item in policy.items]
    said = []
    if not policies and not rewards:
        said.append("It was not evaluated: no figure says what it can do, or cannot.")
    for policy in policies:
        if policy.figures is not None and (cut := 1 - policy.figures["overall"]["ended"]) > 0:
            said.append(f"{cut:.1%} of its responses were cut at the limit of new tokens, or held no answer.")
        if policy.too_long:
            said.append(f"{policy.too_long} items were too long for its context and are not in the figures.")
    if policies and not any(item.scorer in _REFUSING for item in items):
        said.append("No item asks for what should be refused, or only looks so: its safety was not measured.")
    said += [
        f"Always preferring the longer response is right in {reward['overall']['longer_wins_accuracy']:.1%} of the "
        "pairs; only what it adds to that is its own. Rewards of different prompts are not comparable."
        for reward in rewards
    ]
    said += [
        f"Its gate {verdict.gate} says: {verdict.state} ({WORDS[verdict.state]}){': ' + reason if reason else ''}."
        for verdict in verdicts
        if verdict.state != "passed"
        for reason in ("; ".join(verdict.reasons),)
    ]
    if UNKNOWN in licenses or not licenses:
        said.append("The licence of some of its data is not known.")
    if gone := [node.name for node in above if node.manifest is None]:
        said.append(f"What it was made from is not all there any more: {', '.join(gone)}.")
    return said


def _data(lineage: Lineage, above: Sequence[Node]) -> list[dict[str, Any]]:
    """Return a row for each source of each dataset: rows, licence, and where it is from."""
    labels, rows = lineage.labels(), []
    for node in above:
        if node.kind != "dataset" or node.directory is None or node.manifest is None:
            continue
        account = read_account(node.directory, labels[node.id], node.kind)
        kept = {row.source: row.kept for row in account.rows} if account is not None else {}
        for source in node.manifest.config.get("sources", [{"name": one} for one in kept if one != "total"]):
            said = node.manifest.facts.get("sources", {}).get(source["name"], {})
            counted = node.manifest.facts.get("licenses", {}).get(source["name"], {})
            licenses = ", ".join(f"{name} ({rows:,} rows)" for name, rows in counted.items())
            origin = source.get("dataset") or source.get("url") or said.get("url") or source.get("file") or ""
            rows.append(
                {
                    "artifact": labels[node.id],
                    "source": source["name"],
                    "records": node.manifest.config.get("record_type", ""),
                    "kept": kept.get(source["name"]),
                    "license": licenses or source.get("license", ", ".join(node.manifest.licenses)),
                    "terms": "; ".join(f"{TERMS[name]} {_listed(said[name])}" for name in _TERMS if said.get(name)),
                    "origin": " ".join(
                        filter(None, (origin, source.get("revision") or source.get("published_revision")))
                    ),
                }
            )
    return rows


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _cell(value: object) -> str:
    """Return a value as it may stand in a cell of a Markdown table."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")
