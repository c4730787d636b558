"""Batch scripts: what they ask Slurm for, and that no value of a configuration can say more than it should."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain.pipeline.config.compose import compose_config
from posttrain.pipeline.config.pipeline import PipelineConfig
from posttrain.pipeline.graph.graph import Stage, build_graph
from posttrain.pipeline.slurm.script import SlurmLauncher, batch_script
from posttrain.stage.errors import UsageError

GPUS = ["recipe=smoke", "launcher=slurm", "distributed=zero3", "launcher.slurm.train.nodes=2"]
NASTY = "a b;$(touch hurt) `touch hurt` 'x' \"y\" \\ $HOME\n#SBATCH --uid=0"


def stage_of(name: str, *overrides: str) -> tuple[PipelineConfig, Stage]:
    config = compose_config([*overrides])
    return config, next(stage for stage in build_graph(config) if stage.name == name)


def script_of(name: str, *overrides: str, elements: int = 1, directory: Path = Path("/store/runs/r/slurm")) -> str:
    config, stage = stage_of(name, *overrides)
    return batch_script(config, stage, "r", directory / f"{name}.json", directory / name, elements)


def directives(script: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]


def test_a_training_stage_asks_for_nodes_and_gpus() -> None:
    script = script_of("sft", *GPUS, "launcher.slurm.train.partition=gpu", "stages.sft.slurm.time_limit='1-12:00:00'")
    assert directives(script) == [
        "--job-name=r/sft",
        "--output=/store/runs/r/slurm/sft-%j.out",
        "--open-mode=append",
        "--partition=gpu",
        "--nodes=2",
        "--ntasks-per-node=8",
        "--cpus-per-task=8",
        "--gpus-per-node=8",
        "--time=1-12:00:00",
        "--signal=B:USR1@180",
        "--requeue",
    ]
    assert script.startswith("#!/bin/bash\n")
    command = [sys.executable, "-m", "posttrain.pipeline.slurm.job", "/store/runs/r/slurm/sft.json"]
    assert script.splitlines()[-1] == f"exec {shlex.join(command)}"


def test_stages_of_one_process_ask_for_one_node() -> None:
    for name, gpus in (("untrained", False), ("evaluate_sft", True), ("demonstration_tokens", False)):
        found = directives(script_of(name, *GPUS))
        assert ("--nodes=1" in found, "--ntasks-per-node=1" in found) == (True, True), name
        assert ("--gpus-per-node=1" in found) == gpus, name
    single = directives(script_of("sft", *GPUS, "stages.sft.distributed=single"))
    assert {"--nodes=1", "--ntasks-per-node=1", "--gpus-per-node=1"} <= set(single)


def test_a_job_array_numbers_its_elements() -> None:
    found = directives(script_of("dpo", *GPUS, elements=3))
    assert found[1] == "--output=/store/runs/r/slurm/dpo-%A_%a.out"
    assert "--array=0-2" in found


def test_numbers_are_as_good_as_words() -> None:
    overrides = ["launcher.slurm.train.memory_per_node=0", "launcher.slurm.train.account=17"]
    script = script_of("sft", *GPUS, *overrides, "launcher.slurm.environment.NCCL_IB_DISABLE=1")
    assert {"--mem=0", "--account=17"} <= set(directives(script))
    assert "export NCCL_IB_DISABLE=1" in script.splitlines()


def words_of(script: str, *names: str) -> set[str]:
    """The directives of some options, as sbatch reads them."""
    lines = [shlex.split(line, comments=True)[0] for line in directives(script)]
    return {line for line in lines if line.startswith(tuple(f"--{name}=" for name in names))}


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["train.gpus_per_node=a100:8"], {"--gpus-per-node=a100:8", "--ntasks-per-node=8"}),
        (["train.gpus_per_node=a100:8", "train.gpus_by=gres"], {"--gres=gpu:a100:8", "--ntasks-per-node=8"}),
        (["train.gpus_by=gres", "train.options={gres: nvme:1}"], {"--gres=gpu:8,nvme:1", "--ntasks-per-node=8"}),
        (["train.options={gres: nvme:1}"], {"--gres=nvme:1", "--gpus-per-node=8", "--ntasks-per-node=8"}),
        (["train.options={constraint: 'a100|h100'}"], {"--constraint=a100|h100"}),
        (["train.options={constraint: '[rack1|rack2]&(nvlink|sxm)'}"], {"--constraint=[rack1|rack2]&(nvlink|sxm)"}),
        (["train.qos=high", "train.options={reservation: maint}"], {"--qos=high", "--reservation=maint"}),
        (["train.partition='a100,h100'"], {"--partition=a100,h100"}),
        (
            ["train.options={container-image: 'nvcr.io#nvidia/pytorch:24.01-py3'}"],
            {"--container-image=nvcr.io#nvidia/pytorch:24.01-py3"},
        ),
    ],
)
def test_what_clusters_ask_for_has_a_form(overrides: list[str], expected: set[str]) -> None:
    script = script_of("sft", *GPUS, *(f"launcher.slurm.{override}" for override in overrides))
    names = {option.partition("=")[0].removeprefix("--") for option in expected}
    gpus = {option for option in expected if option.startswith(("--gres=", "--gpus-per-node="))}
    assert words_of(script, "gres", "gpus-per-node") == (gpus or {"--gpus-per-node=8"})
    assert expected <= words_of(script, *names)


def test_a_stage_of_one_process_gets_one_gpu_of_the_type() -> None:
    typed = ["launcher.slurm.evaluate.gpus_per_node=h100:4"]
    assert "--gpus-per-node=h100:1" in directives(script_of("evaluate_reward", *GPUS, *typed))
    config, stage = stage_of("evaluate_reward", *GPUS, *typed)
    assert "CUDA_VISIBLE_DEVICES" not in SlurmLauncher(config).environment(stage)


def test_a_stage_that_samples_has_a_process_for_each_gpu_of_its_job() -> None:
    typed = ["launcher.slurm.evaluate.gpus_per_node=h100:4", "distributed.num_processes=16"]
    found = directives(script_of("evaluate_sft", *GPUS, *typed))
    assert {"--nodes=1", "--ntasks-per-node=4", "--gpus-per-node=h100:4"} <= set(found)
    config, stage = stage_of("evaluate_sft", *GPUS, *typed)
    launcher = SlurmLauncher(config)
    assert (launcher.distributed(stage).kind, launcher.distributed(stage).num_processes) == ("ddp", 4)
    assert launcher.environment(stage)["POSTTRAIN_RANKS"] == "slurm" and "--ntasks=4" in launcher.srun(stage, Path("s"))
    alone = directives(script_of("evaluate_sft", *GPUS, *typed, "stages.evaluate_sft.distributed=single"))
    assert {"--ntasks-per-node=1", "--gpus-per-node=h100:1"} <= set(alone)


def test_ranks_run_in_a_container() -> None:
    """By a plugin of srun, or by a program around Python."""
    pyxis = "launcher.slurm.srun_options={container-image: 'nvcr.io#nvidia/pytorch:24.01', container-mounts: '/s:/s'}"
    config, stage = stage_of("sft", *GPUS, pyxis, "launcher.slurm.python=python3")
    command = SlurmLauncher(config).srun(stage, Path("/s/spec.json"))
    assert {"--container-image=nvcr.io#nvidia/pytorch:24.01", "--container-mounts=/s:/s"} <= set(command)
    assert command[-5:] == ["python3", "-m", "posttrain.train.sft", "--spec", "/s/spec.json"]
    apptainer = "launcher.slurm.container=[apptainer,exec,--nv,/images/a b.sif]"
    config, stage = stage_of("sft", *GPUS, apptainer)
    command = SlurmLauncher(config).srun(stage, Path("/s/spec.json"))
    assert command[-9:-4] == ["apptainer", "exec", "--nv", "/images/a b.sif", sys.executable]


def test_an_array_may_be_throttled() -> None:
    script = script_of("dpo", *GPUS, "launcher.slurm.array_limit=4", elements=30)
    assert "--array=0-29%4" in directives(script)


def test_further_options_have_the_last_word() -> None:
    options = "{constraint: a100, exclusive: true, requeue: false, nice: 5, nodes: 4}"
    found = directives(script_of("sft", *GPUS, f"launcher.slurm.train.options={options}"))
    assert {"--constraint=a100", "--exclusive", "--nice=5", "--nodes=4"} <= set(found)
    assert not any(line.startswith(("--requeue", "--nodes=2")) for line in found)


def test_values_of_variables_reach_the_command_as_they_stand(tmp_path: Path) -> None:
    config, stage = stage_of("sft", *GPUS)
    config.launcher.slurm.environment.update({"NASTY": NASTY, "PLAIN": "ib0"})
    script = batch_script(config, stage, "r", tmp_path / "o.json", tmp_path / "log", 1)
    *before, last = script.splitlines()
    assert last.startswith("exec ")
    assert directives("\n".join(before[: before.index("")])) == directives("\n".join(before[:14]))
    probe = "\n".join([*before, "exec printenv -0 NASTY PLAIN"])
    done = subprocess.run(["bash", "-eu"], input=probe, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout == f"{NASTY}\0ib0\0"
    assert not (tmp_path / "hurt").exists()


def test_setup_lines_are_shell_and_run_before_the_command(tmp_path: Path) -> None:
    script = script_of("sft", *GPUS, "launcher.slurm.setup=['export A=$((1+1))','export B=$A.0']")
    probe = "\n".join([*script.splitlines()[:-1], 'echo "$A $B"'])
    assert subprocess.run(["bash"], input=probe, capture_output=True, text=True, check=True).stdout == "2 2.0\n"


def test_paths_with_spaces_and_percents_are_kept_whole() -> None:
    script = script_of("sft", *GPUS, directory=Path("/my store/100%j/$(x)"))
    assert '--output="/my store/100%%j/$(x)/sft-%j.out"' in directives(script)
    assert script.splitlines()[-1].endswith(" '/my store/100%j/$(x)/sft.json'")


@pytest.mark.parametrize("name", ['say "so"', "two\nlines"])
def test_a_path_that_no_directive_can_hold_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"^root: .*a path with quotes or line ends"):
        script_of("sft", *GPUS, directory=Path("/store") / name)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("launcher.slurm.train.partition='a;b'", "launcher.slurm.train.partition"),
        ("launcher.slurm.train.account='$(id)'", "launcher.slurm.train.account"),
        ("launcher.slurm.train.qos='high low'", "launcher.slurm.train.qos"),
        ("launcher.slurm.train.memory_per_node='\"1G\"'", "launcher.slurm.train.memory_per_node"),
        ("launcher.slurm.train.time_limit='1 day'", "launcher.slurm.train.time_limit"),
        ("launcher.slurm.train.time_limit=90", "launcher.slurm.train.time_limit"),
        ("launcher.slurm.train.nodes=0", "launcher.slurm.train.nodes"),
        ("launcher.slurm.train.gpus_per_node=-1", "launcher.slurm.train.gpus_per_node"),
        ("launcher.slurm.train.gpus_per_node='a100:x'", "launcher.slurm.train.gpus_per_node"),
        ("launcher.slurm.train.options={constraint: 'a;b'}", "launcher.slurm.train.options"),
        ("launcher.slurm.train.options={constraint: 'a\"b'}", "launcher.slurm.train.options"),
        ("launcher.slurm.environment={A-B: x}", "launcher.slurm.environment"),
        ("launcher.slurm.train.options={'exclusive;id': true}", "launcher.slurm.train.options"),
        ("launcher.slurm.train.options={comment: 'a b'}", "launcher.slurm.train.options"),
        ("launcher.slurm.srun_options={mpi: '$(id)'}", "launcher.slurm.srun_options"),
        ("stages.sft.slurm.partition='a;b'", "stages.sft.slurm.partition"),
        ("run_name='a b'", "run_name"),
        ("run_name='../elsewhere'", "run_name"),
    ],
)
def test_what_is_no_name_is_refused_by_its_key(override: str, key: str) -> None:
    with pytest.raises(UsageError) as caught:
        stage_of("sft", *GPUS, override)
    assert str(caught.value).startswith(key), str(caught.value)


def test_the_ranks_of_a_job_are_tasks_of_srun() -> None:
    config, stage = stage_of("sft", *GPUS, "launcher.slurm.srun_options={cpu-bind: cores, unbuffered: false}")
    command = SlurmLauncher(config).srun(stage, Path("/store/spec.json"))
    assert command == [
        "srun",
        "--nodes=2",
        "--ntasks=16",
        "--ntasks-per-node=8",
        "--cpus-per-task=8",
        "--kill-on-bad-exit=1",
        "--cpu-bind=cores",
        sys.executable,
        "-m",
        "posttrain.train.sft",
        "--spec",
        "/store/spec.json",
    ]


def test_a_stage_has_as_many_processes_as_its_job() -> None:
    config, stage = stage_of("sft", *GPUS)
    assert SlurmLauncher(config).distributed(stage).num_processes == 16
    config, stage = stage_of("sft", *GPUS, "distributed.num_processes=4")
    with pytest.raises(UsageError, match=r"^distributed\.num_processes: 4, but the job of sft has 16 "):
        SlurmLauncher(config).distributed(stage)
