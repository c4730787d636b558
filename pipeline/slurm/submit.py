"""Hand pipelines to Slurm: one job per stage, all at once, each waiting for the jobs that make its inputs.

    runs/<run>/slurm/<stage>.sbatch         the job's script
                     <stage>-<digest>.json  which runs it serves, and their whole configuration: what was submitted
                                            stays as it was, whatever is submitted or run here afterwards
    runs/<run>/slurm/jobs.json              stage → job id

Stages of a sweep that differ only in their knobs become elements of a job array. A stage that several points share is
submitted once, and the other runs link to it.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from posttrain.pipeline.runs.promotion import refusal
from posttrain.pipeline.runs.resolve import Made, Resolver, committed
from posttrain.pipeline.runs.rundir import link_stage, read_jobs
from posttrain.pipeline.runs.variants import Point, Variant, variants_of
from posttrain.pipeline.slurm import queue
from posttrain.pipeline.slurm.script import SlurmLauncher, batch_script
from posttrain.pipeline.watch.stopping import StopRequests
from posttrain.stage.errors import GateRefusedError
from posttrain.stage.files import canonical_json, sha256_text, write_json_atomic, write_text_atomic
from posttrain.stage.lease import Lease
from posttrain.stage.schema import to_dict
from posttrain.stage.spec import StageSpec


@dataclasses.dataclass
class Planned:
    """A variant and what is to become of it."""

    variant: Variant
    made: Made | None = None
    spec: StageSpec | None = None
    job: str = ""
    """Slurm's id, once it has one; ``<run/stage>`` in a plan that is not submitted."""
    is_new: bool = False
    kept: str = ""
    """How a job that is in the queue already differs from what would be submitted now."""


@dataclasses.dataclass(frozen=True)
class Group:
    """Variants of one stage that make one job, or one job array, and what it waits for."""

    members: list[Planned]
    dependencies: list[str]


class Submission:
    """The jobs of one or several pipelines; `plan` says what they are, `submit` hands them over."""

    def __init__(self, points: list[Point]) -> None:
        """Raise UsageError where a stage asks for another number of processes than its job has."""
        for point in points:
            for stage in point.stages:
                SlurmLauncher(point.config).distributed(stage)
        self.points = points
        self._variants = variants_of(points)
        self._planned: dict[int, Planned] = {}
        self._writes = False

    def stages(self) -> list[Planned]:
        """Return every variant after `plan` or `submit`, parents first."""
        return list(self._planned.values())

    def plan(self) -> list[tuple[Group, str, Path]]:
        """Return the groups that would be submitted with their scripts' texts and paths; write and submit nothing."""
        self._look_up()
        groups = self._groups(
            {}, lambda group: f"<{_script_path(group).parent.parent.name}/{_script_path(group).stem}>"
        )
        return [(group, self._script(group), _script_path(group)) for group in groups]

    def submit(self, stops: StopRequests) -> None:
        """Submit what is neither made nor in the queue already.

        Raises PosttrainError with Slurm's words when a job is refused, KeyboardInterrupt after a stop signal; the jobs
        submitted before are cancelled, so that nothing is left half done.
        """
        self._writes = True
        with ExitStack() as stack:
            for point in self.points:
                stack.enter_context(Lease(point.run.lease, point.run.name))
            for point in self.points:
                point.run.open(point.config, point.stages)
            self._link_shared()
            known = {
                (point.run.name, stage): job for point in self.points for stage, job in read_jobs(point.run).items()
            }
            alive = set(queue.live_jobs(known.values()))
            queued = {key: job for key, job in known.items() if job in alive}
            self._look_up()
            self._write_made()
            submitted: list[str] = []
            with stops.noted():  # a job whose `sbatch` was interrupted would be nobody's
                try:
                    self._groups(queued, lambda group: self._submit_group(group, submitted, stops))
                except BaseException:
                    queue.cancel(submitted)
                    raise
                self._write_jobs()

    def _look_up(self) -> None:
        """Find what is made of every variant already, parents first."""
        for variants in self._variants.values():
            for variant in variants:
                self._planned[id(variant)] = planned = self._found(variant)
                if planned.made is None:
                    self._refuse(variant)

    def _refuse(self, variant: Variant) -> None:
        """Raise GateRefusedError where a stage that is not made builds upon a model whose gate has refused it."""
        for parent in variant.parents:
            made = self._planned[id(parent)].made
            judged = parent.stage.name in variant.stage.gates and made is not None and self._writes
            if judged and made is not None and (why := refusal(parent.stage.name, made)) is not None:
                raise GateRefusedError(f"stages.{variant.stage.name}: gate {parent.stage.name}: {why}")

    def _groups(self, queued: dict[tuple[str, str], str], job_of: Callable[[Group], str]) -> list[Group]:
        """Give every variant that is not made its job, stage by stage; ``job_of`` names the job of new ones."""
        groups: list[Group] = []
        for name, variants in self._variants.items():
            new: list[Planned] = []
            for planned in (self._planned[id(variant)] for variant in variants):
                if planned.made is not None:
                    continue
                planned.job = queued.get((planned.variant.home.name, name), "")
                if planned.job:
                    planned.kept = self._kept(planned)
                else:
                    planned.is_new = True
                    new.append(planned)
            for group in grouped(new, self._jobs_of_parents):
                job = job_of(group)
                for index, planned in enumerate(group.members):
                    planned.job = f"{job}_{index}" if len(group.members) > 1 else job
                groups.append(group)
        return groups

    def _found(self, variant: Variant) -> Planned:
        """Return what is made of a variant already, which can be told once all its inputs are made."""
        made = {parent.stage.name: self._planned[id(parent)].made for parent in variant.parents}
        present = {name: artifact for name, artifact in made.items() if artifact is not None}
        if len(present) < len(made):
            return Planned(variant)
        point = variant.points[0]
        resolver = Resolver(point.config, point.run, SlurmLauncher(point.config).distributed)
        spec = resolver.spec(variant.stage, present)
        if self._writes:
            resolver.save()
        return Planned(variant, committed(spec), spec)

    def _jobs_of_parents(self, planned: Planned) -> tuple[str, ...]:
        return tuple(job for parent in planned.variant.parents if (job := self._planned[id(parent)].job))

    def _script(self, group: Group) -> str:
        first = group.members[0].variant
        log = first.home.path / "slurm" / first.stage.name
        config = first.points[0].config
        return batch_script(config, first.stage, first.home.name, _orders_path(group), log, len(group.members))

    def _kept(self, planned: Planned) -> str:
        """Return how the script of a queued job differs from what would be submitted now; of an array's, nothing."""
        group = Group([planned], [])
        script = _script_path(group)
        if not script.exists():
            return ""
        before, now = _asked(script.read_text(encoding="utf-8")), _asked(self._script(group))
        there, here = ([line for line in one if line not in other] for one, other in ((before, now), (now, before)))
        return f"{' '.join(there) or 'nothing'}, where this command says {' '.join(here) or 'nothing'}" * (
            there != here
        )

    def _submit_group(self, group: Group, submitted: list[str], stops: StopRequests) -> str:
        if stops.wanted:
            raise KeyboardInterrupt(stops.came[0].number.name)
        script, orders = _script_path(group), _orders_path(group)
        script.parent.mkdir(exist_ok=True)
        write_text_atomic(orders, json.dumps(_orders(group), indent=2, ensure_ascii=False) + "\n")  # in their order
        write_text_atomic(script, self._script(group))
        job = queue.submit(script, group.dependencies)
        submitted.append(job)
        return job

    def _link_shared(self) -> None:
        for variants in self._variants.values():
            for variant in variants:
                for point in variant.points[1:]:
                    link_stage(point.run, variant.home, variant.stage.name)

    def _write_made(self) -> None:
        """Leave the work orders of what is made, before a job that consumes it can start."""
        for planned in self._planned.values():
            if planned.made is not None and planned.spec is not None:
                for point in planned.variant.points:
                    point.run.write_spec(planned.spec)

    def _write_jobs(self) -> None:
        """Leave the ids for `posttrain status` and `posttrain cancel`."""
        jobs: dict[str, dict[str, str]] = {point.run.name: read_jobs(point.run) for point in self.points}
        for planned in self._planned.values():
            for point in planned.variant.points:
                if planned.job:
                    jobs[point.run.name][planned.variant.stage.name] = planned.job
        for point in self.points:
            point.run.jobs.parent.mkdir(exist_ok=True)
            write_json_atomic(point.run.jobs, jobs[point.run.name])


def grouped(planned: list[Planned], jobs_of_parents: Callable[[Planned], tuple[str, ...]]) -> list[Group]:
    """Return variants of one stage as jobs and job arrays.

    Those that wait for the same jobs make one array. So do those of which each waits for the element with its own
    index of a parent's array (``aftercorr``); what fits neither is submitted piece by piece.
    """
    by_arrays: dict[tuple[str, ...], list[tuple[Planned, tuple[str, ...]]]] = {}
    for item in planned:
        jobs = jobs_of_parents(item)
        by_arrays.setdefault(tuple(_array(job) for job in jobs), []).append((item, jobs))
    groups: list[Group] = []
    for members in by_arrays.values():
        matched = _corresponding([jobs for _, jobs in members])
        if matched is not None:
            groups.append(Group([item for item, _ in members], matched))
            continue
        by_jobs: dict[tuple[str, ...], list[Planned]] = {}
        for item, jobs in members:
            by_jobs.setdefault(jobs, []).append(item)
        groups += [Group(same, _after_ok(jobs)) for jobs, same in by_jobs.items()]
    return groups


def _array(job: str) -> str:
    """Return the id of the array that a job is an element of, or its own."""
    return re.sub(r"_\d+$", "", job)


def _after_ok(jobs: tuple[str, ...]) -> list[str]:
    return [f"afterok:{':'.join(jobs)}"] if jobs else []


def _corresponding(waits: list[tuple[str, ...]]) -> list[str] | None:
    """Return the dependencies of one array whose elements wait for elements of the same index, or None."""
    arrays: list[str] = []
    same: list[str] = []
    if len(waits) == 1:
        return None
    for column in zip(*waits, strict=True):
        array = _array(column[0])
        if len(set(column)) == 1:
            same.append(column[0])
        elif all(job == f"{array}_{index}" for index, job in enumerate(column)):
            arrays.append(array)
        else:
            return None
    if not arrays:
        return None
    return _after_ok(tuple(same)) + [f"aftercorr:{array}" for array in arrays]


def _orders(group: Group) -> list[dict[str, Any]]:
    """Return what each element of a job array is to do; a job that is no array does the first."""
    return [
        {
            "stage": member.variant.stage.name,
            "runs": [str(point.run.path) for point in member.variant.points],
            "config": to_dict(member.variant.points[0].config),
        }
        for member in group.members
    ]


def _asked(script: str) -> list[str]:
    """Return the lines of a batch script that say what the job gets and does, without those that name it."""
    lines = [line.removeprefix("#SBATCH ") for line in script.splitlines() if line and not line.startswith("# ")]
    return [line for line in lines if not line.startswith(("--job-name=", "--output=", "--array=", "exec ", "checked"))]


def _orders_path(group: Group) -> Path:
    script = _script_path(group)
    return script.with_name(f"{script.stem}-{sha256_text(canonical_json(_orders(group)))[:8]}.json")


def _script_path(group: Group) -> Path:
    first = group.members[0].variant
    return first.home.path / "slurm" / f"{first.stage.name}.sbatch"
