"""Episodes as mini-batches, as micro-batches, and as a file."""

from pathlib import Path

import numpy as np
import pytest
import torch

from posttrain.train.rollouts.episodes import Episode, collate_episodes, load_episodes, mini_batches, save_episodes


def episodes(count: int) -> list[Episode]:
    generator = np.random.default_rng(0)
    made = []
    for place in range(count):
        prompt, response = generator.integers(1, 9), generator.integers(1, 12)
        per_token = generator.normal(size=(5, response)).astype(np.float32)
        made.append(
            Episode(
                place=place,
                row=place % 7,
                prompt_ids=generator.integers(5, 99, prompt).tolist(),
                response_ids=generator.integers(5, 99, response).tolist(),
                logps=per_token[0],
                ended=bool(place % 3),
                reference_logps=per_token[1],
                values=per_token[2],
                advantages=per_token[3],
                returns=per_token[4],
            )
        )
    return made


def test_a_step_sees_the_same_episodes_whatever_the_number_of_ranks_and_the_accumulation() -> None:
    made = episodes(48)
    layouts = [(1, 1), (1, 4), (2, 1), (2, 2), (4, 2)]
    steps = {
        layout: [
            sorted(i for part in parts for i in part)
            for parts in mini_batches(made, 16, [3, 1, 0], layout[0], layout[1])
        ]
        for layout in layouts
    }
    assert all(steps[layout] == steps[1, 1] for layout in layouts)
    assert sorted(i for step in steps[1, 1] for i in step) == list(range(48))  # each once in a pass


def test_ranks_get_as_many_micro_batches_of_similar_length() -> None:
    made = episodes(48)
    for parts in mini_batches(made, 16, [3, 1, 0], world_size=2, accumulation=2):
        assert [len(part) for part in parts] == [4, 4, 4, 4]
        lengths = [made[index].length for part in parts for index in part]
        assert lengths == sorted(lengths)


def test_every_pass_has_an_order_of_its_own_that_depends_on_the_seed_alone() -> None:
    made = episodes(48)
    first, again, other = (mini_batches(made, 16, seed, 1, 1) for seed in ([3, 1, 0], [3, 1, 0], [3, 1, 1]))
    assert first == again
    assert first != other


def test_a_micro_batch_marks_the_response_tokens_and_carries_their_values_in_order() -> None:
    long, short = (
        Episode(0, 4, [7, 8, 9], [5, 6], np.float32([-1, -2]), True),
        Episode(1, 2, [7], [4], np.float32([-3]), False),
    )
    for episode in (long, short):
        for name in ("reference_logps", "values", "advantages", "returns"):
            setattr(episode, name, episode.logps * 2)
    batch = collate_episodes([long, short], pad_token_id=0, step_tokens=11)
    assert batch["input_ids"].tolist() == [[7, 8, 9, 5, 6], [7, 4, 0, 0, 0]]
    assert batch["chosen"].tolist() == [[False, False, False, True, True], [False, True, False, False, False]]
    assert batch["input_ids"][batch["chosen"]].tolist() == [5, 6, 4]
    assert batch["logps"].tolist() == [-1, -2, -3] and batch["returns"].tolist() == [-2, -4, -6]
    assert batch["row"].tolist() == [4, 2]
    assert (int(batch["num_tokens"]), int(batch["step_tokens"])) == (7, 11)


def test_a_response_token_that_is_the_padding_token_still_counts() -> None:
    episode = Episode(0, 0, [7], [0, 5], np.float32([-1, -2]), True)
    for name in ("reference_logps", "values", "advantages", "returns"):
        setattr(episode, name, episode.logps)
    assert collate_episodes([episode], 0, 2)["chosen"].tolist() == [[False, True, True]]


@pytest.mark.parametrize("count", [1, 13])
def test_episodes_come_back_from_a_file_bit_by_bit(tmp_path: Path, count: int) -> None:
    made = episodes(count)
    save_episodes(tmp_path / "episodes.safetensors", made)
    loaded = load_episodes(tmp_path / "episodes.safetensors")
    assert len(loaded) == count
    for before, after in zip(made, loaded, strict=True):
        for name in ("place", "row", "prompt_ids", "response_ids", "ended"):
            assert getattr(before, name) == getattr(after, name)
    rows = range(count)
    before_batch, after_batch = (collate_episodes([e[row] for row in rows], 0, 5) for e in (made, loaded))
    assert all(torch.equal(before_batch[name], after_batch[name]) for name in before_batch)
    assert mini_batches(made, count, [1], 1, 1) == mini_batches(loaded, count, [1], 1, 1)
