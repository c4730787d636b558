"""Turn rows into padded tensors.

B rows of a micro-batch, T positions, R responses of all groups of a micro-batch, P pairs.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from posttrain.data.records import IGNORED, untied_pairs
from posttrain.models.batching import pad_rows
from posttrain.models.tree.layout import lay_out, lay_out_to_predict
from posttrain.train.rows.dataset import FILLER, Row

Batch = dict[str, Any]
"""Tensors by name; of shared prompts also how they lie."""


def collate_sft(rows: list[Row], pad_token_id: int, with_mask: bool = False) -> Batch:
    """Return ``input_ids_BT`` and ``labels_BT`` of demonstrations, padded on the right.

    Causal attention keeps such padding out by itself, and a mask would keep the fast kernels out: ``attention_mask_BT``
    is there with ``with_mask`` alone.
    """
    ids_BT, mask_BT = pad_rows([row["input_ids"] for row in rows], pad_token_id)
    labels_BT, _ = pad_rows([_labels(row) for row in rows], IGNORED)
    batch = {**_bookkeeping(rows, int(mask_BT.sum())), "input_ids": ids_BT, "labels": labels_BT}
    return {**batch, "attention_mask": mask_BT} if with_mask else batch


def collate_packs(rows: list[Row], pad_token_id: int, flatten: bool) -> Batch:
    """Return ``input_ids_BT``, ``labels_BT``, ``position_ids_BT`` of packs; padding is a sequence of its own.

    ``flatten`` lays all packs end to end in one row (B = 1), as flash attention wants it.
    """
    bookkeeping = _bookkeeping(rows, sum(len(row["input_ids"]) for row in rows))
    if flatten:
        joined = {
            name: torch.from_numpy(np.concatenate(values).astype(np.int64))[None]
            for name, values in (
                ("input_ids", [row["input_ids"] for row in rows]),
                ("labels", [_labels(row) for row in rows]),
                ("position_ids", [row["position_ids"] for row in rows]),
            )
        }
        return {**bookkeeping, **joined}
    longest = max(len(row["input_ids"]) for row in rows)
    positions = [
        np.concatenate([row["position_ids"], np.arange(longest - len(row["position_ids"]))]).tolist() for row in rows
    ]
    return {
        **bookkeeping,
        "input_ids": pad_rows([row["input_ids"] for row in rows], pad_token_id)[0],
        "labels": pad_rows([_labels(row) for row in rows], IGNORED)[0],
        "position_ids": pad_rows(positions, 0)[0],
    }


def collate_ranked_groups(rows: list[Row], pad_token_id: int) -> Batch:
    """Return whole K-ranked groups: every response once, and the untied pairs among them.

    ``input_ids_RT``; ``better_P`` and ``worse_P`` index R; ``rank_gap_P`` ≥ 1; ``weight_P`` is
    1 / C(K, 2) of the pair's group (Ouyang et al. 2022, eq. 1), so that a group weighs the same whatever its K. Fillers
    come last: they have responses but no pairs, and are in neither ``num_groups`` nor ``num_responses``.
    """
    sequences = [[*row["prompt_ids"], *response] for row in rows for response in row["responses_ids"]]
    ids_RT, mask_RT = pad_rows(sequences, pad_token_id)
    return {**_bookkeeping(rows, int(mask_RT.sum())), "input_ids": ids_RT, **_pairs_of_groups(rows)}


def collate_shared_groups(rows: list[Row]) -> Batch:
    """Return what `collate_ranked_groups` does, but each prompt once with its responses, in one row ``input_ids_1T``.

    ``groups`` says how they lie there. Tokens are counted as if nothing was shared.
    """
    ids_1T, groups = lay_out([(row["prompt_ids"], row["responses_ids"]) for row in rows])
    tokens = sum(len(row["prompt_ids"]) + len(response) for row in rows for response in row["responses_ids"])
    return {**_bookkeeping(rows, tokens), "input_ids": ids_1T, "groups": groups, **_pairs_of_groups(rows)}


def _pairs_of_groups(rows: list[Row]) -> Batch:
    better: list[int] = []
    worse: list[int] = []
    gap: list[float] = []
    weight: list[float] = []
    first = counted = 0
    for row in rows:
        ranks = [] if row["row"] == FILLER else row["ranks"]
        counted += len(ranks)
        for winner, loser in untied_pairs(ranks):
            better.append(first + winner)
            worse.append(first + loser)
            gap.append(float(ranks[loser] - ranks[winner]))
            weight.append(1.0 / math.comb(len(ranks), 2))
        first += len(row["responses_ids"])
    return {
        "num_groups": torch.tensor(sum(row["row"] != FILLER for row in rows)),
        "num_responses": torch.tensor(counted),
        "better": torch.tensor(better, dtype=torch.int64),
        "worse": torch.tensor(worse, dtype=torch.int64),
        "rank_gap": torch.tensor(gap),
        "weight": torch.tensor(weight),
    }


def collate_pairs(rows: list[Row], pad_token_id: int, with_mask: bool = False) -> Batch:
    """Return pairs: ``input_ids_BT`` of the chosen and then the rejected responses behind their prompts.

    ``completion_mask_BT`` says what is a response, ``counted_P`` which pairs are not fillers. ``attention_mask_BT`` is
    there with ``with_mask`` alone, for the reason of `collate_sft`.
    """
    responses = [(row["prompt_ids"], row[side]) for side in ("chosen_ids", "rejected_ids") for row in rows]
    ids_BT, mask_BT = pad_rows([[*prompt, *response] for prompt, response in responses], pad_token_id)
    completion_BT, _ = pad_rows([[0] * len(prompt) + [1] * len(response) for prompt, response in responses], 0)
    batch = {**_bookkeeping(rows, int(mask_BT.sum())), "input_ids": ids_BT, "completion_mask": completion_BT}
    return {**batch, **_of_pairs(rows), **({"attention_mask": mask_BT} if with_mask else {})}


def _of_pairs(rows: list[Row]) -> Batch:
    sides = ("ref_chosen_logps", "ref_rejected_logps")
    logps = {side: torch.tensor([row[side] for row in rows], dtype=torch.float32) for side in sides}
    return {**logps, "counted": torch.tensor([row["row"] != FILLER for row in rows])}


def collate_shared_pairs(rows: list[Row], pad_token_id: int) -> Batch:
    """Return pairs of responses twice: as one row in which each prompt is once, and as what the loss is computed of.

    ``row_ids_1T``, ``row_labels_1T`` and ``groups`` are those of `lay_out_to_predict`. The other tensors are those of
    `collate_pairs`, each response behind the last token of its prompt alone; ``place_BT`` says where in the row the
    scores of their tokens are.
    """
    ids_1T, labels_1T, groups = lay_out_to_predict(
        [(row["prompt_ids"], [row["chosen_ids"], row["rejected_ids"]]) for row in rows]
    )
    branches = [span.responses[side] for side in (0, 1) for span in groups.spans]
    input_ids_BT, mask_BT = pad_rows([ids_1T[0, branch].tolist() for branch in branches], pad_token_id)
    places = [list(range(branch.start, branch.stop - 1)) for branch in branches]
    tokens = sum(2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows)
    return {
        **_bookkeeping(rows, tokens),
        "row_ids": ids_1T,
        "row_labels": labels_1T,
        "groups": groups,
        "place": pad_rows(places, 0)[0].long(),
        "input_ids": input_ids_BT,
        "completion_mask": torch.cat([torch.zeros_like(mask_BT[:, :1]), mask_BT[:, 1:]], 1),
        **_of_pairs(rows),
    }


def collate_unpaired(rows: list[Row], pad_token_id: int, with_mask: bool = False) -> Batch:
    """Return unpaired preferences: ``input_ids_BT``, ``targets_BT``, ``ref_logps_B``, ``desirable_B``, ``counted_B``.

    Targets are ignored but in the response. ``mismatched_ids_BT`` and so on are the same of prompts with the mismatched
    responses. Fillers are not counted. Masks are there with ``with_mask`` alone, for the reason of `collate_sft`.
    """
    batch: Batch = {
        "desirable": torch.tensor([bool(row["label"]) for row in rows]),
        "counted": torch.tensor([row["row"] != FILLER for row in rows]),
    }
    tokens = 0
    for prefix, response, logps in (
        ("mismatched_", "mismatched_ids", "ref_mismatched_logps"),
        ("", "response_ids", "ref_logps"),
    ):
        name = prefix or "input_"
        ids_BT, mask_BT = pad_rows([[*row["prompt_ids"], *row[response]] for row in rows], pad_token_id)
        trained = [[IGNORED] * len(row["prompt_ids"]) + list(row[response]) for row in rows]
        batch |= {f"{name}ids": ids_BT, f"{prefix}targets": pad_rows(trained, IGNORED)[0]}
        batch[logps] = torch.tensor([row[logps] for row in rows], dtype=torch.float32)
        if with_mask:
            batch[f"{prefix}attention_mask"] = mask_BT
        tokens = int(mask_BT.sum())
    return {**_bookkeeping(rows, tokens), **batch}


def _labels(row: Row) -> list[int]:
    return [IGNORED] * len(row["labels"]) if row["row"] == FILLER else row["labels"]


def _bookkeeping(rows: list[Row], num_tokens: int) -> Batch:
    """Return what the trainer takes out of a batch before the model sees it: row indices and the real tokens."""
    return {"row": torch.tensor([row["row"] for row in rows]), "num_tokens": torch.tensor(num_tokens)}
