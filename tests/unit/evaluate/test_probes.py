"""Probes change the manner and nothing of what is said; their figures on rewards that are written out."""

from __future__ import annotations

from pathlib import Path

import pytest
from build_artifacts import build_model

from posttrain.data.chat.tokenizer import load_tokenizer
from posttrain.evaluate.measure.probes import PROBES, WORDINGS, ProbedGroup, probe_groups, probed, summarise_probes


@pytest.mark.parametrize("language", [*WORDINGS, "en-GB"])
@pytest.mark.parametrize("probe", PROBES)
def test_a_probe_keeps_all_that_was_said(probe: str, language: str) -> None:
    changed = probed("It is 12. That is all.", probe, language)
    assert changed is not None and len(changed) > len("It is 12. That is all.")
    plain = changed.replace("- **", "").replace("**", "").replace("\n", " ")
    assert "It is 12. That is all." in plain


def test_probes_by_hand() -> None:
    assert probed("Yes. No!\nMaybe", "formatting", "xx") == "- **Yes.**\n- **No!**\n- **Maybe**"
    assert probed("Yes.", "repetition", "xx") == "Yes. Yes."
    assert probed("Yes.", "flattery", "xx") is None
    assert probed("Yes.", "verbosity", "xx") is None


def test_figures_by_hand() -> None:
    said = {name: [None, None] for name in PROBES}
    groups = [
        ProbedGroup("a", [1, 2], [2.0, 0.0], {**said, "flattery": [3.0, 1.0], "repetition": [1.0, 3.0]}),
        ProbedGroup("b", [2, 1], [2.0, 0.0], {**said, "flattery": [1.0, None], "repetition": [2.0, 0.0]}),
    ]
    found = summarise_probes(groups)
    assert {*found} == {"flattery", "repetition"}
    spread = (4 / 3) ** 0.5  # of 2, 0, 2, 0
    flattery, repetition = found["flattery"], found["repetition"]
    assert flattery["effect"]["value"] == pytest.approx((1 + 1 - 1) / 3 / spread)
    assert (flattery["raised"]["value"], flattery["responses"]) == (pytest.approx(2 / 3), 3)
    assert repetition["effect"]["value"] == pytest.approx((-1 + 3 + 0 + 0) / 4 / spread)
    assert repetition["raised"]["value"] == pytest.approx((0 + 1 + 0.5 + 0.5) / 4)
    # Only a is ranked right: its worse response earns 1 when it flatters and 3 when it repeats, against 2.
    assert (flattery["turned"]["value"], repetition["turned"]["value"]) == (0.0, 1.0)


def test_responses_reach_the_reward_model_as_turns_that_end(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(build_model(tmp_path))
    eos = tokenizer.eos_token_id

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False).input_ids)

    prompt = ids("How many cats?")
    row = {"id": "a", "language": "en", "prompt_ids": prompt, "ranks": [1, 2]}
    whole = {**row, "responses_ids": [[*ids("two cats"), eos], [*ids("dog"), eos]]}
    cut = {**row, "id": "b", "responses_ids": [[*ids("two cats"), eos], ids("dog")]}
    seen: list[list[int]] = []

    def score(sequences: list[list[int]]) -> list[float]:
        seen.extend(sequences)
        return [float(len(one)) for one in sequences]

    groups = probe_groups(tokenizer, [whole, cut], score, None)
    assert [group.id for group in groups] == ["a"]
    assert seen[0] == [*prompt, *ids("two cats"), eos]
    assert all(one[: len(prompt)] == prompt and one.count(eos) == 1 and one[-1] == eos for one in seen)
    assert groups[0].plain == [float(len(prompt) + len(ids("two cats")) + 1), float(len(prompt) + len(ids("dog")) + 1)]
    assert tokenizer.decode(seen[2][len(prompt) : -1]).strip() == "two cats two cats"
    short = probe_groups(tokenizer, [whole], score, len(seen[0]))
    assert short[0].plain == groups[0].plain and short[0].probed["verbosity"] == [None, None]
