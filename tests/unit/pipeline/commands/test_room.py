"""What a sweep will write is said before it starts: what is shared once, and the checkpoints of what runs at once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from posttrain.pipeline.commands.keeping.room import estimate_of, require_room
from posttrain.pipeline.commands.planning.stages import SEQUENCES_PER_ROW, WITH_ROLLOUTS
from posttrain.pipeline.commands.run import prepare
from posttrain.pipeline.config.sweep import compose_sweep
from posttrain.pipeline.graph.registry import STAGE_TYPES
from posttrain.pipeline.runs.variants import Point, variants_of
from posttrain.plan.disk import Writes, disk_figure, most_at_once
from posttrain.stage.errors import UsageError


def points(root: Path, *overrides: str) -> list[Point]:
    configs = compose_sweep(["recipe=smoke", f"root={root}", *overrides])
    return [prepare(config) for config in configs.values()]


def test_what_stays_and_what_stands_beside_it_meanwhile() -> None:
    writes = Writes(10, trained=20, states=8 * 20, kept=2)
    assert (writes.artifact, writes.checkpoints) == (40, 3 * 12 * 20)
    assert disk_figure(writes).value == 40 + 3 * 12 * 20
    assert (Writes(10, 2).artifact, Writes(10).checkpoints) == (20, 0)
    stages = [(1, 10), (2, 30), (3, 20)]
    assert most_at_once(stages, 1) == 6 + 30
    assert most_at_once(stages, 2) == 6 + 50
    assert most_at_once(stages, None) == 6 + 60


def test_an_estimate_counts_the_weights_that_the_stage_really_has(tmp_path: Path) -> None:
    made = {name: estimate_of(of_name[0]) for name, of_name in variants_of(points(tmp_path)).items() if name in KNOWN}
    weights = 33_440  # in the artifacts that the recipe makes
    taken = {name: (writes.artifact, writes.checkpoints) for name, writes in made.items() if writes is not None}
    score = weights + 32
    assert taken["untrained"] == (4 * weights, 0)
    assert taken["sft"] == (4 * weights, 3 * 12 * weights)
    assert taken["reward"] == (4 * score, 3 * 12 * score)
    assert taken["ppo"] == (4 * weights, 3 * 12 * (weights + score)), "the critic is trained too, and not stored"


@pytest.mark.parametrize(
    ("words", "artifact", "checkpoints"),
    [
        (["train.sft.save_dtype=bfloat16"], 0.5, 1.0),
        (["train.sft.optimizer.kind=muon"], 1.0, 0.75),  # nearly: 4 of its 12 bytes less for matrices
        (["train.sft.optimizer.kind=adafactor"], 1.0, 0.4),
        (["adapter=lora"], 0.9, 0.9),
    ],
)
def test_knobs_that_change_what_is_stored(
    tmp_path: Path, words: list[str], artifact: float, checkpoints: float
) -> None:
    usual, other = (estimate_of(variants_of(points(tmp_path, *overrides))["sft"][0]) for overrides in ([], words))
    assert usual is not None and other is not None
    if words == ["adapter=lora"]:
        assert other.artifact < artifact * usual.artifact and other.checkpoints < checkpoints * usual.checkpoints
        return
    assert other.artifact == artifact * usual.artifact
    assert other.checkpoints == pytest.approx(checkpoints * usual.checkpoints, rel=0.15)


KNOWN = ("untrained", "sft", "reward", "ppo")


def said(capsys: pytest.CaptureFixture[str], root: Path, *overrides: str) -> float:
    require_room(points(root, *overrides))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("disk: ")]
    amount, unit = line.split()[2:4]
    return float(amount) * {"kB": 1e3, "MB": 1e6, "GB": 1e9}[unit]


def test_a_sweep_counts_what_its_points_share_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = said(capsys, tmp_path)
    three = said(capsys, tmp_path, "train.dpo.beta=0.1,0.2,0.3")
    assert one < three < one + 2.5 * 4 * 33_440, "two more artifacts of dpo, and nothing else"


def test_what_will_not_fit_is_refused_or_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    free = shutil.disk_usage(tmp_path).free
    large = f"train.base.architecture.vocab_size={free // 100}"
    with pytest.raises(UsageError, match=r"^root=.* of weights and checkpoints are to come, but .* are free; .*gc"):
        require_room(points(tmp_path, large))
    require_room(points(tmp_path, large, "launcher.disk=warn"))
    assert capsys.readouterr().err.count("warning: root=") == 1


def test_every_stage_that_trains_is_counted() -> None:
    trains = {run for run, each in STAGE_TYPES.items() if each.kind in ("model", "reward_model")}
    assert trains == {"train.base", *SEQUENCES_PER_ROW, *WITH_ROLLOUTS}


def test_an_engine_of_low_precision_stores_low_weights_and_a_copy_in_checkpoints(tmp_path: Path) -> None:
    words = ["distributed=zero2", "train.sft.dtype=bfloat16"]
    made = estimate_of(variants_of(points(tmp_path, *words))["sft"][0])
    assert made is not None and (made.artifact, made.checkpoints) == (2 * 33_440, 3 * (2 + 4 + 8) * 33_440)
