"""Reference log-probabilities: whose they have to be, and which response each is of."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from posttrain.stage.artifact import read_manifest
from posttrain.stage.errors import UsageError


def require_reference(reference: Path, model: Path, data: Path) -> None:
    """Check that reference log-probabilities were made by the policy's starting point, on the same tokens.

    Raises UsageError otherwise.
    """
    parents = read_manifest(reference).parents
    for name, directory in (("model", model), ("data", data)):
        digest = read_manifest(directory).digest
        if parents[name].digest != digest:
            raise UsageError(
                f"inputs.reference: {reference.name} was made from {name} {parents[name].name}, but this stage has "
                f"{directory.name}; make the reference from the same {name}"
            )


def read_reference(reference: Path, split: str) -> pa.Table:
    """Return a row (`id`, `response`, `logp`) for every response of a split."""
    return pq.read_table(reference / f"{split}.parquet")


def logps_of_responses(reference: pa.Table) -> dict[tuple[str, int], float]:
    """Return the log-probability of each response by the id of its row and its number there."""
    keys = zip(reference["id"].to_pylist(), reference["response"].to_pylist(), strict=True)
    return dict(zip(keys, reference["logp"].to_pylist(), strict=True))
