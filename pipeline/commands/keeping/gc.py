"""`posttrain gc`: what no run of a store needs, listed with its size, and deleted where that is wanted."""

from __future__ import annotations

import os
import shutil
import stat
import time
from pathlib import Path

from rich.table import Table

from posttrain.pipeline.runs.needs import Needless, lineage, needless
from posttrain.pipeline.watch.progress import console_for_tables
from posttrain.stage.artifact import MANIFEST, memory_file
from posttrain.stage.errors import EXIT_DONE, UsageError
from posttrain.stage.files import may_write, remove_directory
from posttrain.stage.record import RECORDS
from posttrain.stage.wording import size

DAY_SECONDS = 86_400.0


def collect(root: Path, days: float, delete: bool) -> int:
    """List what no run needs and nothing has written to for some days; delete it where that is said.

    What younger things were made from stays with them.
    """
    found = needless(root)
    before = time.time() - days * DAY_SECONDS
    young = [one for one in found if one.changed > before]
    kept = {name for one in young if (one.path / MANIFEST).is_file() for name in lineage(one.path)}
    doomed = [one for one in found if one.changed <= before and one.path.name not in kept]
    print_needless(doomed, root)
    if len(doomed) < len(found):
        print(f"{len(found) - len(doomed)} more were written to in the last {days:g} days, or made something that was")
    if doomed and delete:
        remove(doomed)
    elif doomed:
        print("nothing was deleted; --yes deletes it")
    return EXIT_DONE


def print_needless(found: list[Needless], root: Path) -> None:
    """Print a line for each of some things in a store, and what they take together."""
    if found:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in ("size", "last written", "what", "where"):
            table.add_column(heading, justify="right" if heading == "size" else "left", overflow="fold")
        for one in found:
            written = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.changed))
            table.add_row(size(one.bytes), written, one.why, str(one.path.relative_to(root.resolve())))
        console_for_tables().print(table)
    print(f"{len(found)} in all: {size(sum(one.bytes for one in found))}")


def remove(doomed: list[Needless]) -> None:
    """Delete things, and what was said of artifacts among them; what was made from others goes before them.

    Raises UsageError before anything is deleted where something may not be.
    """
    for one in doomed:
        _require_rights(one.path)
    depths = {one.path: len(lineage(one.path)) if (one.path / MANIFEST).is_file() else 0 for one in doomed}
    for one in sorted(doomed, key=lambda each: -depths[each.path]):
        if depths[one.path]:
            shutil.rmtree(one.path.parent.parent / RECORDS / one.path.name, ignore_errors=True)
            if (memory := memory_file(one.path)) is not None:
                memory.unlink(missing_ok=True)
        if one.path.is_dir() and not one.path.is_symlink():
            remove_directory(one.path)
        else:
            one.path.unlink(missing_ok=True)
    print(f"deleted {len(doomed)}: {size(sum(one.bytes for one in doomed))}")


def _require_rights(path: Path) -> None:
    """Raise UsageError when a file or folder, or something below it, is another user's and not for us to delete."""
    folders = [path.parent]
    if path.is_dir() and not path.is_symlink():
        folders += [path, *(below for below in path.rglob("*") if below.is_dir() and not below.is_symlink())]
    for folder in folders:
        if not may_write(folder):
            raise UsageError(f"{folder}: not ours to delete from, and nothing was deleted; ask its owner")
    above = path.parent.stat()
    if above.st_mode & stat.S_ISVTX and os.geteuid() not in (0, above.st_uid, path.lstat().st_uid):
        raise UsageError(f"{path}: only its owner may delete it, and nothing was deleted; ask its owner")
