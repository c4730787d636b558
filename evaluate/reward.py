"""Score one reward model on held-out comparisons.

python -m posttrain.evaluate.reward inputs.model=DIR inputs.data=DIR output=DIR
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from transformers import AutoConfig

from posttrain.data.chat.tokenizer import load_tokenizer, tokenizer_digest
from posttrain.evaluate.config.reward import RewardEvaluationConfig
from posttrain.evaluate.inputs import NONE, read_heldout_tokens
from posttrain.evaluate.measure.ensembles import summarise_members
from posttrain.evaluate.measure.group_scores import summarise_best
from posttrain.evaluate.measure.pair_scores import ScoredGroup, pairs_of, summarise_pairs
from posttrain.evaluate.measure.probes import probe_groups, summarise_probes
from posttrain.models.declared import context_length
from posttrain.models.load import backbone_directory
from posttrain.sample.choose.ensemble import combined
from posttrain.sample.config.ensemble import EnsembleConfig
from posttrain.sample.score import member_rewards, members, require_tokenizer
from posttrain.stage.artifact import trusts_remote_code
from posttrain.stage.entry import Context, StageResult, stage_main
from posttrain.stage.errors import UsageError
from posttrain.stage.files import write_json_atomic

log = logging.getLogger(__name__)


def run(config: RewardEvaluationConfig, context: Context) -> StageResult:
    """Write items.parquet, one row per untied pair, and summary.json; without held-out rows only that nothing is."""
    judges = members(context.inputs, "model")
    tokenizer = load_tokenizer(context.inputs["model"])
    require_tokenizer(judges, tokenizer_digest(tokenizer), "evaluate.reward")
    data = context.inputs["data"]
    rows = read_heldout_tokens(data, "comparison", tokenizer)
    if not rows:
        write_json_atomic(context.output / "summary.json", {"overall": None, "groups": 0})
        return StageResult(headline=NONE)
    if all(len(set(row["ranks"])) == 1 for row in rows):
        raise UsageError(f"{data.name}: every held-out group is one tie; give comparisons with differing ranks")
    sequences = [row["prompt_ids"] + response for row in rows for response in row["responses_ids"]]
    log.info("%d groups, %d responses", len(rows), len(sequences))

    def score(whole: Sequence[list[int]]) -> NDArray[np.float64]:
        return _rewards(judges, whole, tokenizer.pad_token_id, config.batch_size, config.dtype)

    rewards_MN = score(sequences)
    rewards = iter(_together(rewards_MN, config.ensemble))
    groups = [_scored_group(row, [next(rewards) for _ in row["responses_ids"]]) for row in rows]
    pairs = [pair for group in groups for pair in pairs_of(group)]
    pq.write_table(pa.Table.from_pylist([pair._asdict() for pair in pairs]), context.output / "items.parquet")
    summary = summarise_pairs(groups, config.confidence)
    summary["best_of"] = summarise_best(groups, config.confidence)
    if len(judges) > 1:
        names = [directory.name for directory in judges]
        summary["ensemble"] = summarise_members(
            groups, rewards_MN, names, config.ensemble.penalty, config.confidence
        ) | {"combine": config.ensemble.combine}
    taken = rows[:: max(1, -(-len(rows) // config.probed_groups))] if config.probed_groups else []
    probes = probe_groups(tokenizer, taken, lambda whole: _together(score(whole), config.ensemble), _context(judges))
    summary["probes"] = summarise_probes(probes, config.confidence)
    summary["probed_groups"] = len(probes)
    write_json_atomic(context.output / "summary.json", summary)
    return _result(summary, sum(map(len, sequences)))


def _rewards(
    judges: Sequence[Path], sequences: Sequence[list[int]], pad_token_id: int, batch_size: int, dtype: str
) -> NDArray[np.float64]:
    """Return the rewards ``MN`` of each model: raw those of one alone, else in each one's standard deviations."""
    several = len(judges) > 1
    return member_rewards(judges, sequences, pad_token_id, batch_size, dtype, normalize=several)


def _together(rewards_MN: NDArray[np.float64], ensemble: EnsembleConfig) -> list[float]:
    together: list[float] = combined(rewards_MN, ensemble.combine, ensemble.penalty).tolist()
    return together


def _context(judges: Sequence[Path]) -> int | None:
    """Return the tokens that all of the reward models take; None where none says."""
    backbones = [backbone_directory(directory) for directory in judges]
    configs = [AutoConfig.from_pretrained(one, trust_remote_code=trusts_remote_code(one)) for one in backbones]
    return min((length for length in map(context_length, configs) if length is not None), default=None)


def _scored_group(row: dict[str, Any], rewards: list[float]) -> ScoredGroup:
    return ScoredGroup(
        id=row["id"],
        source=row["source"],
        task=row["task"],
        language=row["language"],
        ranks=row["ranks"],
        rewards=rewards,
        lengths=[len(response) for response in row["responses_ids"]],
    )


def _result(summary: dict[str, Any], tokens: int) -> StageResult:
    accuracy = summary["overall"]["accuracy"]
    matched = summary["overall"]["length_matched"]
    half_width = (accuracy["high"] - accuracy["low"]) / 2
    headline = f"accuracy {accuracy['value']:.2f} ± {half_width:.2f}"
    several: dict[str, Any] = summary.get("ensemble", {})
    if several:
        headline += f", of one {several['accuracy']['single']['value']:.2f}"
    return StageResult(
        metrics={
            "accuracy": accuracy["value"],
            "accuracy_low": accuracy["low"],
            "accuracy_high": accuracy["high"],
            "pairs": accuracy["n"],
            "groups": summary["groups"],
            "calibration_error": summary["calibration_error"],
            "best": summary["best_of"]["overall"]["best"]["value"],
        }
        | {f"probe/{name}": found["effect"]["value"] for name, found in summary["probes"].items()}
        | ({"accuracy_length_matched": matched["value"]} if matched is not None else {})
        | ({"disagreement": several["disagreement"]} if several else {}),
        headline=headline,
        tokens=tokens,
    )


if __name__ == "__main__":
    stage_main(run, RewardEvaluationConfig, kind="scores")
