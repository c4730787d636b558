"""Token artifacts as datasets that a Trainer can index."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from posttrain.stage.errors import UsageError
from torch.utils.data import Dataset

Row = dict[str, Any]


def require_tokens(directory: Path, record_type: str, template_sha256: str) -> None:
    """Check that a tokens artifact holds the wanted records and was made with the model's own chat template.

    Raises UsageError otherwise.
    """
    facts = json.loads((directory / "tokens.json").read_text(encoding="utf-8"))
    if facts["record_type"] != record_type:
        raise UsageError(
            f"{directory.name}: holds {facts['record_type']} tokens, but this stage needs {record_type} tokens"
        )
    if facts["template_sha256"] != template_sha256:
        raise UsageError(
            f"{directory.name}: made with chat template {facts['template_sha256'][:12]}, but the model's is "
            f"{template_sha256[:12]}; tokenize with the model that you train"
        )


class TokenRows(Dataset[Row]):
    """Rows of one split; list columns come as numpy arrays, and `row` is the index that error messages look up."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table.combine_chunks()
        self.ids: list[str] = table["id"].to_pylist()

    @classmethod
    def read(cls, directory: Path, split: str) -> TokenRows:
        """Read ``train`` or ``eval`` of a tokens artifact."""
        return cls(pq.read_table(directory / f"{split}.parquet"))

    def __len__(self) -> int:
        return len(self.ids)

    def column(self, name: str, row: int) -> np.ndarray[Any, Any]:
        """Return the numbers of one list cell."""
        return np.asarray(self.table[name][row].values)


class SftRows(TokenRows):
    """Demonstrations: `input_ids` and `labels` of one row."""

    def __getitem__(self, row: int) -> Row:
        if not 0 <= row < len(self):
            raise IndexError(row)
        return {"row": row, "input_ids": self.column("input_ids", row), "labels": self.column("labels", row)}

    def lengths(self) -> list[int]:
        """Return the tokens of every row."""
        return list_lengths(self.table["input_ids"])


class GroupRows(TokenRows):
    """K-ranked groups: the token ids of prompt + response for each response, and the ranks."""

    def __getitem__(self, row: int) -> Row:
        if not 0 <= row < len(self):
            raise IndexError(row)
        prompt = self.column("prompt_ids", row)
        responses = [np.asarray(cell.values) for cell in self.table["responses_ids"][row]]
        return {"row": row, "prompt_ids": prompt, "responses_ids": responses, "ranks": self.column("ranks", row)}

    def lengths(self) -> list[int]:
        """Return the tokens of prompt and longest response of every group."""
        prompts = list_lengths(self.table["prompt_ids"])
        return [
            prompt + max(len(response) for response in responses)
            for prompt, responses in zip(prompts, self.table["responses_ids"], strict=True)
        ]


@dataclasses.dataclass(frozen=True)
class Pair:
    """A chosen and a rejected response of one group, by index."""

    row: int
    chosen: int
    rejected: int


def make_pairs(ranks_of_rows: list[list[int]], which: str) -> list[Pair]:
    """Return the preference pairs of ranked groups (rank 1 is best; tied responses make no pair).

    ``best_worst`` gives one pair a group, the first best and the last worst response; ``all`` gives every untied pair.
    """
    pairs = []
    for row, ranks in enumerate(ranks_of_rows):
        if which == "best_worst":
            best, worst = min(ranks), max(ranks)
            if best < worst:
                last_worst = len(ranks) - 1 - ranks[::-1].index(worst)
                pairs.append(Pair(row, ranks.index(best), last_worst))
        else:
            pairs += [
                Pair(row, i, j) for i, rank_i in enumerate(ranks) for j, rank_j in enumerate(ranks) if rank_i < rank_j
            ]
    return pairs


class PairRows(Dataset[Row]):
    """Preference pairs with the reference model's log-probabilities of both responses."""

    def __init__(self, groups: GroupRows, reference: pa.Table, which: str) -> None:
        self.groups = groups
        self.pairs = make_pairs(groups.table["ranks"].to_pylist(), which)
        self.ids = [groups.ids[pair.row] for pair in self.pairs]
        keys = zip(reference["id"].to_pylist(), reference["response"].to_pylist(), strict=True)
        self._reference = dict(zip(keys, reference["logp"].to_pylist(), strict=True))

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < len(self):
            raise IndexError(index)
        pair = self.pairs[index]
        group = self.groups[pair.row]
        return {
            "row": index,
            "prompt_ids": group["prompt_ids"].tolist(),
            "chosen_ids": group["responses_ids"][pair.chosen].tolist(),
            "rejected_ids": group["responses_ids"][pair.rejected].tolist(),
            "ref_chosen_logps": self._reference[self.groups.ids[pair.row], pair.chosen],
            "ref_rejected_logps": self._reference[self.groups.ids[pair.row], pair.rejected],
        }

    def lengths(self) -> list[int]:
        """Return the tokens of prompt and longest of the two responses of every pair."""
        groups = self.groups.lengths()
        return [groups[pair.row] for pair in self.pairs]


def list_lengths(column: pa.ChunkedArray) -> list[int]:
    """Return the length of every list cell of an Arrow column."""
    lengths: list[int] = pc.list_value_length(column).to_pylist()
    return lengths
