"""What a person sees while stages run: live lines on a terminal, plain ones otherwise, and the table at the end."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from posttrain.pipeline.graph.environment import changed_packages
from posttrain.pipeline.runs.progress import how_far
from posttrain.stage.artifact import Manifest
from posttrain.stage.heartbeat import read_beats
from posttrain.stage.wording import duration

HEARTBEAT_SECONDS = 30.0
"""Between two lines about a running stage, where there is no terminal."""
LOOK_SECONDS = 0.5
"""Between two looks at how far a stage is, on a terminal."""
TABLE_WIDTH = 140


def console_for_tables() -> Console:
    """Return a console; one that writes into a file or pipe, which has no width of its own, gets a wide one."""
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, TABLE_WIDTH)
    return console


class Display:
    """Announces what happens to stages; a context manager that keeps the live lines below the announcements."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[latest]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._spoke: dict[str, float] = {}
        self._looked: dict[str, float] = {}
        self._whole: TaskID | None = None

    def __enter__(self) -> Display:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def say(self, stage: str, text: str) -> None:
        """Print one line about a stage."""
        clock = time.strftime("%H:%M:%S")
        self._console.print(f"{clock}  {escape(stage):<22} {escape(text)}", highlight=False, soft_wrap=True)

    def whole(self, made: int, stages: int) -> None:
        """Show how many stages of the graph are made, below those that run."""
        if self._whole is None:
            self._whole = self._live.add_task("all stages", total=stages, count="", latest="")
        self._live.update(self._whole, completed=made, count=f"{made}/{stages}")

    def started(self, stage: str, text: str) -> None:
        """Announce a stage and show it as running."""
        self.say(stage, text)
        self._tasks[stage] = self._live.add_task(escape(stage), total=None, count="", latest="")
        self._spoke[stage] = time.monotonic()

    def ended(self, stage: str, text: str) -> None:
        """Announce the end of a stage."""
        self._live.remove_task(self._tasks.pop(stage))
        self.say(stage, text)

    def update(self, stage: str, metrics_file: Path, signs: Path) -> None:
        """Show how far a running stage has come; ``signs`` is the folder of its ranks' signs of life."""
        now = time.monotonic()
        if self._console.is_terminal and now - self._looked.get(stage, 0.0) > LOOK_SECONDS:
            self._looked[stage] = now
            at = how_far(metrics_file, read_beats(signs))
            count = f"{at.step}/{at.last_step}" if at.step is not None and at.last_step is not None else ""
            latest = " · ".join(filter(None, [at.figures, at.rate(), at.left()])) if at.step is not None else at.phase
            self._live.update(
                self._tasks[stage], total=at.last_step, completed=at.step or 0, count=count, latest=escape(latest)
            )
        elif not self._console.is_terminal and now - self._spoke[stage] > HEARTBEAT_SECONDS:
            self._spoke[stage] = now
            self.say(stage, f"running {how_far(metrics_file, read_beats(signs)).words()}".rstrip())


def stage_table(states: Mapping[str, str], manifests: Mapping[str, Manifest], title: str) -> Table:
    """Return the table of a run: what became of each stage and what it made."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for heading in ("stage", "status", "made", "key"):
        table.add_column(heading, no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    table.add_column("tokens/s", justify="right", no_wrap=True)
    table.add_column("result", overflow="fold")
    for name, state in states.items():
        manifest = manifests.get(name)
        table.add_row(name, state, *([escape(cell) for cell in _cells(manifest)] if manifest else []))
    return table


def _cells(manifest: Manifest) -> Sequence[str]:
    per_second = manifest.tokens / manifest.wall_seconds if manifest.tokens and manifest.wall_seconds else 0
    return (
        manifest.kind,
        manifest.key[:8],
        duration(manifest.wall_seconds),
        f"{per_second:,.0f}" if per_second else "",
        manifest.headline,
    )


def version_warnings(cached: Mapping[str, Manifest]) -> list[str]:
    """Return a line for each package of which stages that are taken as they are were made with another version."""
    stages: dict[str, list[str]] = {}
    for stage, manifest in cached.items():
        for name, (then, now) in changed_packages(manifest.packages).items():
            stages.setdefault(f"made with {name} {then}, but {name} {now} is here", []).append(stage)
    return [
        f"warning: {', '.join(names)}: {what}; taken as they are, delete an artifact to have it made anew"
        for what, names in stages.items()
    ]
