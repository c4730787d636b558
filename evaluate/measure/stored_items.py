"""The scored items of an artifact, whichever stage made it: one row an item, also where it was sampled many times."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from posttrain.evaluate.measure.drift_scores import SampledResponse, read_responses
from posttrain.evaluate.measure.item_scores import ScoredItem, read_items
from posttrain.stage.artifact import read_manifest


def stored_items(directory: Path) -> list[ScoredItem]:
    """Return the scored items of an artifact of `evaluate.policy`, or the mean of the samples of `evaluate.drift`."""
    if read_manifest(directory).kind != "drift":
        return read_items(directory)
    by_item: dict[str, list[SampledResponse]] = defaultdict(list)
    for response in read_responses(directory):
        by_item[response.id].append(response)
    return [_mean_item(own) for own in by_item.values()]


def _mean_item(own: Sequence[SampledResponse]) -> ScoredItem:
    first = own[0]
    judged = [one.preference for one in own if one.preference is not None]
    return ScoredItem(
        id=first.id,
        task=first.task,
        language=first.language,
        prompt=first.prompt,
        response=first.scored,
        reference="",
        ideal=None,
        scorer="",
        correct=fmean(one.correct for one in own),
        preference=fmean(judged) if judged else None,
        ended=all(one.ended for one in own),
        group=first.group,
    )
