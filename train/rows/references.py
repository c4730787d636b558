"""Reference log-probabilities: whose they have to be, and which response each is of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from posttrain.stage.artifact import read_manifest
from posttrain.stage.errors import UsageError
from posttrain.train.rows.columns import Numbers


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


def logps_of_responses(reference: pa.Table, ids: pa.Array, counts: Numbers) -> Numbers:
    """Return the log-probabilities of the responses of some rows, one row behind the other.

    ``ids`` are those of the rows, ``counts`` how many responses each has. Raises UsageError for a response that the
    reference does not have.
    """
    first = np.cumsum(counts) - counts
    row = pc.index_in(reference["id"], value_set=ids).to_numpy()
    known = ~np.isnan(row.astype(np.float64))
    row, response = row[known].astype(np.int64), reference["response"].to_numpy()[known]
    found = np.full(int(counts.sum()), np.nan)
    found[first[row] + response] = reference["logp"].to_numpy()[known]
    if len(missing := np.isnan(found).nonzero()[0]):
        at = int(np.searchsorted(first, missing[0], side="right")) - 1
        raise UsageError(
            f"inputs.reference: response {missing[0] - first[at]} of {ids[at].as_py()} is not in it, or has no finite "
            "log-probability; make it anew"
        )
    return found
