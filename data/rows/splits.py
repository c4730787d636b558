"""Which records are held out: whole prompt clusters, so that train and eval never share a prompt."""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable, Mapping, Sequence

from posttrain.data.messages import Message
from posttrain.data.records import EvaluationItem, Record, Split
from posttrain.data.rows.identity import nfc

_DIGEST_BYTES = 12


class Excluded(enum.StrEnum):
    """Why a row is on neither side."""

    HELD_OUT = "held_out_prompt"
    """It would be trained on, but its prompt is held out, here or in an earlier dataset."""
    TRAINED_ON = "trained_on_prompt"
    """It would be held out, but an earlier dataset trains on its prompt."""


def prompt_cluster(record: Record) -> str:
    """Return the whole prompt, every turn before the answer, the system's included; a plain text is its own cluster."""
    messages: list[Message] = getattr(record, "prompt", []) or getattr(record, "completion", [])
    return cluster_of(messages)


def cluster_of(messages: Sequence[Message]) -> str:
    """Return what a conversation says, normalised, by turn where it has several."""
    if len(messages) == 1:
        return normalised(messages[0].content)
    return "\n".join(f"{message.role}: {normalised(message.content)}" for message in messages)


def normalised(text: str) -> str:
    """Return a text in NFC, lower case and single spaces."""
    return nfc(" ".join(text.split())).casefold()


def cluster_digest(cluster: str) -> bytes:
    """Return what stands for a cluster where many are remembered."""
    return hashlib.blake2b(cluster.encode(), digest_size=_DIGEST_BYTES).digest()


def held_out_score(cluster: str, split_seed: int) -> float:
    """Return a number in [0, 1) from cluster and seed alone; below the eval fraction the cluster is held out."""
    digest = hashlib.blake2b(f"{split_seed}\n{cluster}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def assign_splits(
    records: Iterable[Record],
    wanted: Mapping[str, str],
    eval_fraction: float,
    split_seed: int,
    earlier: Mapping[bytes, Split],
) -> list[Split | Excluded]:
    """Return the side of every record, or why it has none.

    ``wanted`` says ``train``, ``eval`` or ``auto`` for each source. A prompt keeps the side that it has in ``earlier``,
    sides by `cluster_digest`: there, `auto` records follow, and those that a source demands on the other side are
    excluded. For other prompts, what sources demand comes first: an `auto` record follows a prompt that some source
    keeps in train, and neither `auto` nor `train` records are trained on where some source keeps the prompt in eval.
    All other `auto` records go where the hash of their cluster falls. When eval would be empty though a share of it is
    wanted, the cluster with the lowest hash moves there, provided another one stays. Evaluation items are not trained
    on: for them `auto` is `eval`.
    """
    clusters: list[bytes] = []
    asked: list[str] = []
    scores: dict[bytes, float] = {}
    for record in records:
        cluster, choice = prompt_cluster(record), wanted[record.source]
        clusters.append(cluster_digest(cluster))
        scores.setdefault(clusters[-1], held_out_score(cluster, split_seed))
        asked.append("eval" if choice == "auto" and isinstance(record, EvaluationItem) else choice)
    settled = {digest: earlier[digest] for digest in scores if digest in earlier}
    kept_out = {cluster for cluster, choice in zip(clusters, asked, strict=True) if choice == "eval"} - {*settled}
    kept_in = {cluster for cluster, choice in zip(clusters, asked, strict=True) if choice == "train"} - kept_out
    undecided = {*scores} - {*settled} - kept_out - kept_in
    free = {cluster: scores[cluster] for cluster in undecided}
    drawn = {cluster for cluster, score in free.items() if score < eval_fraction}
    nothing_out = not kept_out and not drawn and "eval" not in settled.values()
    if nothing_out and free and eval_fraction > 0 and len(scores) > 1:
        drawn = {min(free, key=lambda cluster: (free[cluster], cluster))}

    def side(cluster: bytes, choice: str) -> Split | Excluded:
        known = settled.get(cluster)
        if known is not None:
            excluded = Excluded.HELD_OUT if known == "eval" else Excluded.TRAINED_ON
            return known if choice in ("auto", known) else excluded
        if choice == "eval":
            return "eval"
        if cluster in kept_out:
            drawn_alike = choice == "auto" and scores[cluster] < eval_fraction
            return "eval" if drawn_alike else Excluded.HELD_OUT
        return "eval" if cluster in drawn else "train"

    return [side(cluster, choice) for cluster, choice in zip(clusters, asked, strict=True)]
