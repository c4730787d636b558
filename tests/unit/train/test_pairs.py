"""Preference pairs of ranked groups."""

import pyarrow as pa

from posttrain.train.rows.dataset import Pair, as_dataset, make_pairs, pair_dataset


def test_best_worst_takes_the_first_best_and_the_last_worst() -> None:
    assert make_pairs([[2, 1, 3, 3], [1, 1]], "best_worst") == [Pair(0, 1, 3)]


def test_all_takes_every_untied_pair() -> None:
    assert make_pairs([[1, 2, 2]], "all") == [Pair(0, 0, 1), Pair(0, 0, 2)]


def test_a_pair_has_the_reference_log_probabilities_of_its_own_responses() -> None:
    groups = {
        "id": ["g/0", "g/1"],
        "prompt_ids": [[1], [2, 3]],
        "responses_ids": [[[4], [5, 6], [7]], [[8], [9]]],
        "ranks": [[3, 1, 2], [1, 2]],
    }
    names = [("g/1", 1, -5.0), ("g/1", 0, -4.0), ("g/0", 2, -3.0), ("g/0", 1, -2.0), ("g/0", 0, -1.0)]
    reference = pa.table(dict(zip(("id", "response", "logp"), map(list, zip(*names, strict=True)), strict=True)))
    pairs = list(pair_dataset(as_dataset(pa.table(groups), pa.array([3, 3])), reference, "best_worst"))
    assert [(row["chosen_ids"], row["rejected_ids"]) for row in pairs] == [([5, 6], [4]), ([8], [9])]
    assert [(row["ref_chosen_logps"], row["ref_rejected_logps"]) for row in pairs] == [(-2.0, -1.0), (-4.0, -5.0)]
    assert [row["length"] for row in pairs] == [3, 3]
