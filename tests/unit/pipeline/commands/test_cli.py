"""The command line: help, exit codes, command lines of stages, and no torch on the way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain.pipeline.cli import main
from posttrain.pipeline.config.pipeline import DistributedConfig, LauncherConfig, PipelineConfig, StageNode
from posttrain.pipeline.config.slurm import SlurmResources
from posttrain.pipeline.graph.graph import Stage
from posttrain.pipeline.graph.registry import STAGE_TYPES
from posttrain.pipeline.local.launch import Command, LocalLauncher, local_launcher, visible_gpus
from posttrain.stage.errors import UsageError

COMMANDS = (
    "run",
    "plan",
    "status",
    "cancel",
    "sync",
    "show",
    "verify",
    "accept",
    "export",
    "gc",
    "rm",
    "generate",
    "serve",
)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    visible_gpus.cache_clear()


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    visible_gpus.cache_clear()


def stage(run: str, **distributed: object) -> Stage:
    return Stage(run, STAGE_TYPES[run], {}, None, {}, DistributedConfig(**distributed), SlurmResources(), 0)  # type: ignore[arg-type]


def local(limits: LauncherConfig | None = None, **distributed: object) -> LocalLauncher:
    """Return this machine's launcher for a pipeline whose training stages are to run so."""
    one = stage("train.sft", **distributed)
    config = PipelineConfig(
        stages={"sft": StageNode(run="train.sft")},
        distributed=one.distributed,
        launcher=limits or LauncherConfig(),
    )
    return local_launcher(config, [one])


def command(run: str = "train.sft", limits: LauncherConfig | None = None, **distributed: object) -> Command:
    """Return the command of a stage on this machine."""
    return local(limits, **distributed).command(stage(run, **distributed), ["--spec", "spec.json"])


def test_one_cpu_process_is_launched_by_accelerate_with_everything_spelled_out(no_gpu: None) -> None:
    built = command(limits=LauncherConfig(threads_per_process=3))
    arguments = built.arguments
    assert arguments[:4] == [sys.executable, "-m", "accelerate.commands.launch", "--cpu"]
    assert arguments[-4:] == ["-m", "posttrain.train.sft", "--spec", "spec.json"]
    assert arguments[arguments.index("--num_processes") + 1] == "1"
    assert arguments[arguments.index("--num_cpu_threads_per_process") + 1] == "3"
    assert built.environment["OMP_NUM_THREADS"] == "3"


def test_two_cpu_ranks_need_multi_gpu_without_cpu(no_gpu: None) -> None:
    arguments = command(kind="ddp", num_processes=2).arguments
    assert "--multi_gpu" in arguments
    assert "--cpu" not in arguments


def test_deepspeed_travels_in_the_work_order(no_gpu: None) -> None:
    zero = {"zero_optimization": {"stage": 3}}
    launcher = local(kind="deepspeed", num_processes=2, deepspeed=zero)
    asked = launcher.distributed(stage("train.sft", kind="deepspeed", num_processes=2, deepspeed=zero))
    assert (asked.kind, asked.num_processes, asked.deepspeed) == ("deepspeed", 2, zero)
    assert "--use_deepspeed" not in command(kind="deepspeed", num_processes=2, deepspeed=zero).arguments


def test_ddp_takes_every_visible_gpu_and_one_stage_at_a_time(four_gpus: None) -> None:
    launcher = local(kind="ddp")
    assert launcher.distributed(stage("train.sft", kind="ddp")).num_processes == 4
    devices = launcher.devices()
    assert devices.lend(launcher.devices_of(stage("train.sft", kind="ddp"))) == ["0", "1", "2", "3"]
    assert not devices.has(1)
    built = command(kind="ddp")
    assert "--multi_gpu" in built.arguments
    assert "CUDA_VISIBLE_DEVICES" not in built.environment


def test_device_cpu_hides_the_gpus_from_every_stage(four_gpus: None) -> None:
    for run in ("train.sft", "evaluate.policy"):
        assert command(run, device="cpu").environment["CUDA_VISIBLE_DEVICES"] == ""


def test_data_stages_start_without_accelerate(no_gpu: None) -> None:
    assert command("data.curate").arguments == [sys.executable, "-m", "posttrain.data.curate", "--spec", "spec.json"]


def test_asking_for_devices_that_are_not_there_is_one_line(no_gpu: None) -> None:
    with pytest.raises(UsageError, match=r"distributed\.device: 'cuda', but this machine shows no NVIDIA GPU"):
        local(device="cuda")


def test_more_processes_than_gpus_is_one_line(four_gpus: None) -> None:
    with pytest.raises(UsageError, match=r"distributed\.num_processes: 8, but there are 4 GPUs"):
        local(kind="ddp", num_processes=8)


def test_a_stage_never_takes_itself_for_a_rank_of_its_launcher(no_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = {"RANK", "WORLD_SIZE", "ACCELERATE_USE_DEEPSPEED", "SLURM_PROCID", "SLURM_CPU_BIND", "SLURM_MEM_PER_CPU"}
    foreign |= {"SBATCH_EXPORT", "PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_LOCAL_RANK"}
    kept = {"KEPT", "SLURM_CONF"}
    for name in foreign | kept:
        monkeypatch.setenv(name, "1")
    environment = command().full_environment()
    assert kept <= set(environment)
    assert not foreign & set(environment)


def test_shell_lines_quote_what_a_shell_would_split(no_gpu: None) -> None:
    line = local().command(stage("data.demo"), ["--spec", "a folder/spec.json"]).shell()
    assert line.endswith("-m posttrain.data.demo --spec 'a folder/spec.json'")
    assert "POSTTRAIN_LEASH" not in line


def test_help_lists_every_command_and_run_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["run", "--help"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(name in text for name in COMMANDS)
    assert "posttrain run recipe=demo" in text


@pytest.mark.parametrize("arguments", [["rnu"], ["run", "--dry-rnu"], ["cancel", "a", "b"], ["show"]])
def test_a_malformed_command_line_exits_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "recipe=smok"], "error: recipe=smok: no such recipe; did you mean 'smoke'?"),
        (
            ["run", "recipe=smoke", "train.dpo.learning_rate=1"],
            "error: train.dpo.learning_rate: unknown key; learning_rate (transformers, Axolotl, LLaMA-Factory, "
            "OpenRLHF) is train.dpo.optimizer.learning_rate here",
        ),
        (["run", "recipe=smoke", "train.dpo.betta=1"], "error: train.dpo.betta: unknown key; did you mean 'beta'?"),
        (["run", "recipe=smoke", "stages.dpo.with.beta=x"], "error: stages.dpo.with.beta: 'x': input should be"),
        (["run", "recipe=smoke", "evaluate.policy.max_items=abc"], "error: evaluate.policy.max_items: 'abc': input"),
        (["status", "--root", "nowhere"], "error: run 'latest': not in "),
        (["show", "sft", "--root", "nowhere"], "error: artifact 'sft': not in nowhere/artifacts; it holds no artifact"),
        (["verify", "--root", "nowhere"], "error: nowhere: holds no artifact; give --root DIR"),
    ],
)
def test_a_user_mistake_is_one_line_and_exits_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(message)
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""


def test_options_may_stand_among_the_overrides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "out"
    for given in ([f"root={root}"], ["--root", str(root)]):
        assert main(["run", "recipe=smoke", "--dry-run", *given, "seed=5"]) == 0
        assert str(root) in capsys.readouterr().out
    assert not root.exists()


def test_dry_run_imports_nothing_heavy(tmp_path: Path) -> None:
    probe = (
        "import sys\nfrom posttrain.pipeline.cli import main\n"
        f"main(['run', 'recipe=smoke', '--dry-run', 'root={tmp_path}/out'])\n"
        "heavy = {'torch', 'transformers', 'trl', 'wandb', 'datasets', 'accelerate', 'pyarrow', 'numpy'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", probe], env=os.environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "[]\n")


def test_a_flag_of_another_tool_is_met_with_the_knob(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["run", "recipe=smoke", "--kl_coef", "0.1"])
    assert caught.value.code == 2
    assert "knobs are KEY=VALUE; kl_coef (TRL) is train.ppo.kl.coef here" in capsys.readouterr().err


def test_a_knob_that_the_graph_outvotes_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = ["recipe=demo", "data.curate.record_type=prompt", f"root={tmp_path}", "--dry-run"]
    assert main(["run", *recipe]) == 0
    (note,) = {line for line in capsys.readouterr().err.splitlines() if "stage comparisons" in line}
    assert note.startswith("note: data.curate.record_type=prompt does not reach stage comparisons, whose own value is")
