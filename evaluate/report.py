"""Write one page that says what every stage did: lineage, curves, before and after, rows, samples, provenance.

python -m posttrain.evaluate.report inputs.base=DIR inputs.sft=DIR inputs.dpo=DIR output=DIR
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from posttrain.evaluate.config.report import ReportConfig
from posttrain.evaluate.page.accounting import Account, read_account
from posttrain.evaluate.page.compare import (
    Policy,
    compare,
    compare_groups,
    consecutive,
    policies_of,
    select_samples,
)
from posttrain.evaluate.page.drift_rows import drifts_of
from posttrain.evaluate.page.judgement_rows import judgements_of
from posttrain.evaluate.page.lineage import Lineage, Node, walk
from posttrain.evaluate.page.render import headline_of, render_page
from posttrain.evaluate.page.reward_rows import reward_models_alike, reward_models_of
from posttrain.evaluate.page.verdicts import verdict_line, verdicts_of
from posttrain.stage.entry import Context, StageResult, stage_main
from posttrain.stage.errors import UsageError
from posttrain.stage.files import write_json_atomic


def run(config: ReportConfig, context: Context) -> StageResult:
    """Write report.html and summary.json."""
    if not context.inputs:
        raise UsageError("evaluate.report: nothing to report on; give inputs.NAME=DIR for scores, models or datasets")
    lineage = walk(context.inputs.values())
    policies = policies_of(lineage, config.confidence)
    settings = (config.confidence, config.resamples, context.spec.seed)
    steps = consecutive(lineage, policies)
    paired = [row for before, after in steps for row in compare(before, after, *settings)]
    by_group = {
        group: [row for before, after in steps for row in compare_groups(before, after, group, *settings)]
        for group in ("task", "language")
    }
    drifts = drifts_of(lineage, *settings)
    rewards = reward_models_of(lineage)
    verdicts = verdicts_of(lineage)
    accounts = _accounts(lineage)
    summary = {
        "confidence": config.confidence,
        "verdicts": {verdict.gate: verdict.as_dict() for verdict in verdicts},
        "policies": {policy.label: _policy_summary(policy) for policy in policies},
        "paired": paired,
        "paired_by_task": by_group["task"],
        "paired_by_language": by_group["language"],
        "drift": {drift.label: drift.as_dict() for drift in drifts},
        "reward": rewards,
        "judgements": judgements_of(lineage),
        "stages": [_stage_summary(lineage, node) for node in lineage.nodes.values()],
        "accounting": {account.label: account.as_dict() for account in accounts},
    }
    write_json_atomic(context.output / "summary.json", summary)
    page = render_page(
        title=context.spec.pipeline,
        confidence=config.confidence,
        lineage=lineage,
        policies=policies,
        paired=paired,
        by_group=by_group,
        drifts=drifts,
        rewards=rewards,
        alike=reward_models_alike(lineage, config.confidence),
        verdicts=verdicts,
        accounts=accounts,
        data_pages=_data_pages(lineage, context.output),
        samples=select_samples(policies, config.samples, context.spec.seed),
        most_items=config.items,
    )
    (context.output / "report.html").write_text(page, encoding="utf-8")
    gates = verdict_line(verdicts)
    headline = f"{gates}; " * bool(gates) + headline_of(paired, policies, drifts, rewards, lineage)
    return StageResult(metrics={"policies": len(policies), "reward_models": len(rewards)}, headline=headline)


def _data_pages(lineage: Lineage, output: Path) -> dict[str, str]:
    """Return the pages about data by label, as addresses that hold wherever the store is moved to."""
    labels = lineage.labels()
    found = [node for node in lineage.of_kind("data_page") if node.directory is not None]
    return {labels[node.id]: f"{os.path.relpath(node.directory, output)}/data.html" for node in found if node.directory}


def _policy_summary(policy: Policy) -> dict[str, Any]:
    return {"model": Path(policy.model).name, "loss": policy.loss, "items": policy.figures, "too_long": policy.too_long}


def _stage_summary(lineage: Lineage, node: Node) -> dict[str, Any]:
    manifest = node.manifest
    row: dict[str, Any] = {
        "name": node.name,
        "stage": node.stage,
        "kind": node.kind,
        "key": node.key,
        "parents": {name: lineage.nodes[parent].name for name, parent in node.parents.items()},
    }
    if manifest is not None:
        row |= {"seconds": manifest.wall_seconds, "tokens": manifest.tokens, "headline": manifest.headline}
        row |= {"metrics": manifest.metrics, "seed": manifest.seed, "created": manifest.created}
    return row


def _accounts(lineage: Lineage) -> list[Account]:
    labels = lineage.labels()
    found = [
        read_account(node.directory, labels[node.id], node.kind)
        for node in lineage.of_kind("dataset", "tokens")
        if node.directory is not None
    ]
    return [account for account in found if account is not None]


if __name__ == "__main__":
    stage_main(run, ReportConfig, kind="report")
