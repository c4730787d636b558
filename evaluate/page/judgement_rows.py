"""What judges said of policies: the rows of a report."""

from __future__ import annotations

import json
from typing import Any

from posttrain.evaluate.page.lineage import Lineage


def judgements_of(lineage: Lineage) -> dict[str, dict[str, Any]]:
    """Return the summary of each judgement by the label of its stage, with the policies that were compared.

    ``before`` and ``after`` are the labels of the policies whose scores were judged; None where people's comparisons
    alone were.
    """
    labels = lineage.labels()
    found = {}
    for node in lineage.of_kind("judgement"):
        assert node.directory is not None
        summary = json.loads((node.directory / "summary.json").read_text(encoding="utf-8"))
        sides = {}
        for side in ("before", "after"):
            scores = lineage.nodes.get(node.parents.get(side, ""))
            model = scores.parents.get("model") if scores is not None else None
            sides[side] = labels[model] if model is not None else None
        found[labels[node.id]] = {**summary, **sides}
    return found
