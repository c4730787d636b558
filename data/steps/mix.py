"""Rows to train on in proportions: so much of each task, language or source, and what is too much drops.

Quotas are whole numbers by the method of the largest remainder. Which rows of a group stay depends on the seed and
their ids alone, so more rows of one group change nothing in another's, nor does the order of the files.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from posttrain.data.config.steps import MixConfig
from posttrain.data.records import Record
from posttrain.data.steps.fates import Fate, Finding, StepResult, Surroundings, is_trained_on
from posttrain.data.steps.texts import texts_of
from posttrain.data.steps.words import words
from posttrain.stage.errors import UsageError


class _Row(NamedTuple):
    """What decides about a row: those of a group stay in this order."""

    draw: bytes
    place: int
    words: int


def mix(records: Sequence[Record], knobs: MixConfig, around: Surroundings) -> StepResult:
    """Return what becomes of each row: those over the quota of their group drop; held-out rows all stay.

    Raises UsageError where a share names a group that is not there, where a group has none, and where there are too few
    rows for the number that is wanted.
    """
    groups: dict[str, list[_Row]] = {}
    for place, record in enumerate(records):
        if is_trained_on(record):
            said = len(words(texts_of(record).whole()))
            groups.setdefault("/".join(getattr(record, name) for name in knobs.by), []).append(
                _Row(_draw(knobs.seed, record.id), place, said)
            )
    if not groups:
        return StepResult(map(Fate, records))
    sizes = {name: len(rows) for name, rows in sorted(groups.items())}
    shares = wanted_shares(sizes, knobs.shares, knobs.temperature)
    quotas = largest_remainder(total_rows(sizes, shares, knobs.rows), shares)
    over: dict[int, Finding] = {}
    for name, rows in groups.items():
        drawn = sorted(rows)
        lost = Finding("mix", {"group": name, "quota": quotas[name], "of": sizes[name]})
        over |= {row.place: lost for row in drawn[quotas[name] :]}
    fates = (
        Fate(record, (over[place],), drops=True) if place in over else Fate(record)
        for place, record in enumerate(records)
    )
    kept = {name: [row for row in rows if row.place not in over] for name, rows in groups.items()}
    facts = {name: {"before": _told(groups[name]), "after": _told(kept[name]), "share": shares[name]} for name in sizes}
    return StepResult(fates, {"groups": facts})


def wanted_shares(sizes: Mapping[str, int], shares: Mapping[str, float], temperature: float) -> dict[str, float]:
    """Return the share of each group: as given, or in proportion to its rows to the power of 1 / temperature.

    Raises UsageError where shares and groups are not the same.
    """
    if shares:
        for name in shares.keys() ^ sizes.keys():
            what = "no row is of it" if name in shares else "it has no share"
            raise UsageError(
                f"data.curate.steps.mix.shares: {name!r}: {what}; name each of {', '.join(sizes)}, 0 leaves one out"
            )
    weights = dict(shares) if shares else {name: size ** (1 / temperature) for name, size in sizes.items()}
    total = sum(weights.values())
    return {name: weights[name] / total for name in sizes}


def total_rows(sizes: Mapping[str, int], shares: Mapping[str, float], wanted: int | None) -> int:
    """Return how many rows there will be: as many as are wanted, or as the scarcest group allows.

    Raises UsageError where that is fewer than are wanted.
    """
    scarce = min((name for name in sizes if shares[name] > 0), key=lambda name: sizes[name] / shares[name])
    # A rounding error must not cost a row: 0.3 × 10 / 0.3 is below 10.
    most = math.floor(sizes[scarce] / shares[scarce] + 1e-9)
    if wanted is not None and wanted > most:
        raise UsageError(
            f"data.curate.steps.mix.rows={wanted}: {sizes[scarce]} rows of {scarce!r} at a share of "
            f"{shares[scarce]:.3g} make at most {most}; set rows={most}, or a smaller share"
        )
    return most if wanted is None else wanted


def largest_remainder(total: int, shares: Mapping[str, float]) -> dict[str, int]:
    """Return whole numbers that add up to ``total``, as near to the shares as can be; on a tie the first gets more."""
    exact = {name: total * share for name, share in shares.items()}
    quotas = {name: math.floor(value + 1e-9) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: (quotas[name] - exact[name], name))
    for name in by_remainder[: total - sum(quotas.values())]:
        quotas[name] += 1
    return quotas


def _draw(seed: int, name: str) -> bytes:
    return hashlib.blake2b(f"{seed}\n{name}".encode(), digest_size=16).digest()


def _told(rows: Sequence[_Row]) -> dict[str, int]:
    return {"rows": len(rows), "words": sum(row.words for row in rows)}
