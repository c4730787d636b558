"""Figures of annotators on judgements that were drawn from known preferences."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from posttrain.data.steps.judgements import Judgement, by_unit, krippendorff_alpha
from posttrain.evaluate.measure.annotators import annotator_figures, bradley_terry

SETTINGS = (0.95, 100, 0)


def judged(
    length: float = 0.0, place: float = 0.0, contrary: str = "", ties: float = 0.1, best_first: bool = False
) -> list[Judgement]:
    """Return what three annotators say of 200 pairs, by a Bradley–Terry model; ``contrary`` says the opposite."""
    rng = random.Random(4)
    found = []
    for prompt in range(200):
        ratio, listed = rng.uniform(-1.5, 1.5), rng.choice((1, -1))
        matter = rng.gauss(0, 1)
        for name in ("Ann", "Bo", "Cy"):
            odds = length * ratio + place * listed + (3 * matter if not place and not length else 0)
            value = 1 if rng.random() < 1 / (1 + math.exp(-odds)) else -1
            value = 0 if rng.random() < ties else value * (-1 if name == contrary else 1)
            side = value or 1 if best_first else listed
            found.append(Judgement(prompt.to_bytes(2, "big"), (b"a", b"b"), name, value, ratio, side))
    return found


def test_coefficients_are_those_that_preferences_were_drawn_from() -> None:
    figures = annotator_figures(judged(length=1.5), *SETTINGS)
    assert figures is not None
    fitted = figures["overall"]["bradley_terry"]
    assert fitted["length"]["value"] == pytest.approx(1.5, abs=0.35) and fitted["length"]["low"] > 0.5
    assert fitted["listed_first"]["low"] < 0 < fitted["listed_first"]["high"]
    assert figures["overall"]["longer_wins"]["low"] > 0.6
    assert figures["overall"]["first_wins"]["low"] < 0.5 < figures["overall"]["first_wins"]["high"]
    placed = annotator_figures(judged(place=1.0), *SETTINGS)
    assert placed is not None
    fitted = placed["overall"]["bradley_terry"]
    assert fitted["listed_first"]["value"] == pytest.approx(1, abs=0.25) and fitted["listed_first"]["low"] > 0.5
    assert fitted["length"]["low"] < 0 < fitted["length"]["high"]


def test_one_covariate_that_never_varies_gives_the_log_odds() -> None:
    wins = np.array([[1.0]] * 30 + [[-1.0]] * 10)
    assert bradley_terry(wins, np.ones(40))[0] == pytest.approx(math.log(3), abs=1e-3)
    assert np.isfinite(bradley_terry(wins[:30], np.ones(30))).all(), "also where one side always wins"


def test_alpha_is_that_of_units_seen_from_both_sides() -> None:
    judgements = judged()
    values = [[one.value for one in unit] for unit in by_unit(judgements).values()]
    figures = annotator_figures(judgements, *SETTINGS)
    assert figures is not None
    expected = krippendorff_alpha(values + [[-value for value in own] for own in values])
    assert figures["alpha"]["value"] == pytest.approx(expected)
    assert figures["alpha"]["low"] < expected < figures["alpha"]["high"]
    assert (figures["judgements"], figures["pairs"], figures["judged_by_several"]) == (600, 200, 200)


def test_a_contrary_annotator_is_seen_against_the_others() -> None:
    figures = annotator_figures(judged(contrary="Bo", ties=0), *SETTINGS)
    assert figures is not None
    shares = {name: own["consensus"]["value"] for name, own in figures["by_annotator"].items()}
    assert shares["Bo"] < 0.4 < min(shares["Ann"], shares["Cy"])


def test_place_says_nothing_where_the_better_one_is_always_first() -> None:
    figures = annotator_figures(judged(length=1.0, best_first=True), *SETTINGS)
    assert figures is not None
    assert "first_wins" not in figures["overall"] and list(figures["overall"]["bradley_terry"]) == ["length"]


def test_one_annotator_has_no_agreement_and_no_judgements_no_figures() -> None:
    figures = annotator_figures([one for one in judged() if one.annotator == "Ann"], *SETTINGS)
    assert figures is not None
    assert figures["alpha"] is None and figures["by_annotator"]["Ann"]["consensus"] is None
    assert annotator_figures([], *SETTINGS) is None
