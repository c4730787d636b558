"""Shell completion: commands, groups and their options, knobs part by part, runs and artifacts; in a real bash."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain.pipeline.cli import command_parser, main
from posttrain.pipeline.commands.completion import candidates


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "runs" / "smoke-12").mkdir(parents=True)
    (tmp_path / "runs" / "smoke-12" / "config.yaml").write_text("")
    (tmp_path / "artifacts" / "sft-34").mkdir(parents=True)
    (tmp_path / "artifacts" / "sft-34" / "manifest.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("posttrain sta", ["status"]),
        ("posttrain run rec", ["recipe="]),
        ("posttrain run recipe=smo", ["recipe=smoke", "recipe=smollm2_135m/sft_reward_dpo"]),
        ("posttrain run recipe=smoke train.dp", ["train.dpo."]),
        ("posttrain run train.dpo.bet", ["train.dpo.beta="]),
        ("posttrain run train.dpo.optimizer.be", ["train.dpo.optimizer.beta1=", "train.dpo.optimizer.beta2="]),
        ("posttrain run --dry", ["--dry-run"]),
        ("posttrain status smo", ["smoke-12"]),
        ("posttrain logs --run ", ["smoke-12"]),
        ("posttrain export sf", ["sft-34"]),
        ("posttrain nothing x", []),
    ],
)
def test_the_last_word_becomes_what_may_stand_there(root: Path, line: str, expected: list[str]) -> None:
    assert sorted(candidates(line, command_parser(), root)) == sorted(expected)


def test_a_bash_completes_past_the_equals_sign(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    assert main(["completion", "bash"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    call = f'posttrain() {{ "{sys.executable}" -m posttrain.pipeline.cli "$@"; }}; source {tmp_path}/script; '
    call += (
        'COMP_LINE="posttrain run recipe=smo"; COMP_POINT=${#COMP_LINE}; _posttrain; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", call], capture_output=True, text=True, check=True)
    assert sorted(done.stdout.split()) == ["smoke", "smollm2_135m/sft_reward_dpo"]
