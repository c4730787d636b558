"""Which records are held out: whole prompt clusters, so that train and eval never share a prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from posttrain.data.records import EvaluationItem, Record, Split
from posttrain.data.rows.identity import nfc

HELD_OUT = "held_out_prompt"
"""Why a training row is dropped whose prompt stands in a source that is for evaluation as a whole."""


def prompt_cluster(record: Record) -> str:
    """Return the first user message in NFC, lower case and single spaces; a plain text is its own cluster."""
    messages = [*getattr(record, "prompt", []), *getattr(record, "completion", [])]
    first = next((message for message in messages if message.role == "user"), messages[0])
    return nfc(" ".join(first.content.split())).casefold()


def held_out_score(cluster: str, split_seed: int) -> float:
    """Return a number in [0, 1) from cluster and seed alone; below the eval fraction the cluster is held out."""
    digest = hashlib.blake2b(f"{split_seed}\n{cluster}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def assign_splits(
    records: Sequence[Record], wanted: Sequence[str], eval_fraction: float, split_seed: int
) -> list[Split | None]:
    """Return the side of every record, or None for those to drop because their prompt is held out.

    ``wanted`` says ``train``, ``eval`` or ``auto`` for each. What sources demand comes first: an `auto` record follows
    a prompt that some source keeps in train, and neither `auto` nor `train` records are trained on where some source
    keeps the prompt in eval. All other `auto` records go where the hash of their cluster falls. When eval would be
    empty though a share of it is wanted, the cluster with the lowest hash moves there, provided another one stays.
    Evaluation items are not trained on: for them `auto` is `eval`.
    """
    clusters = [prompt_cluster(record) for record in records]
    asked = [
        "eval" if choice == "auto" and isinstance(record, EvaluationItem) else choice
        for choice, record in zip(wanted, records, strict=True)
    ]
    kept_out = {cluster for cluster, choice in zip(clusters, asked, strict=True) if choice == "eval"}
    kept_in = {cluster for cluster, choice in zip(clusters, asked, strict=True) if choice == "train"} - kept_out
    free = {cluster: held_out_score(cluster, split_seed) for cluster in {*clusters} - kept_out - kept_in}
    drawn = {cluster for cluster, score in free.items() if score < eval_fraction}
    if not kept_out and not drawn and free and eval_fraction > 0 and len({*clusters}) > 1:
        drawn = {min(free, key=lambda cluster: (free[cluster], cluster))}

    def side(cluster: str, choice: str) -> Split | None:
        if choice == "eval":
            return "eval"
        if cluster in kept_out:
            drawn_alike = choice == "auto" and held_out_score(cluster, split_seed) < eval_fraction
            return "eval" if drawn_alike else None
        return "eval" if cluster in drawn else "train"

    return [side(cluster, choice) for cluster, choice in zip(clusters, asked, strict=True)]
