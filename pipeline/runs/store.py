"""Finds committed artifacts by what a person types."""

from __future__ import annotations

from pathlib import Path

from posttrain.pipeline.runs.resolve import committed
from posttrain.pipeline.runs.rundir import RunDirectory, read_stages
from posttrain.stage.artifact import MANIFEST, Manifest, read_manifest
from posttrain.stage.errors import UsageError, did_you_mean
from posttrain.stage.spec import StageSpec


def artifact_directories(root: Path) -> list[Path]:
    """Return the artifacts below a root, by name."""
    return sorted(path.parent for path in (root / "artifacts").glob(f"[!.]*/{MANIFEST}"))


def manifests_beside(artifact: Path) -> dict[Path, Manifest]:
    """Return the manifests of the artifacts in the folder of one, by directory; unreadable ones are left out."""
    paths = sorted(path.parent for path in artifact.resolve().parent.glob(f"[!.]*/{MANIFEST}"))
    return {path: manifest for path in paths if (manifest := _manifest(path)) is not None}


def find_artifact(root: Path, text: str) -> Path:
    """Return the artifact that ``text`` means: a directory, a stage, ``RUN/STAGE``, or a start of name, key or digest.

    Raises UsageError with the candidates or the nearest name when it is none, or more than one.
    """
    if text and (Path(text) / MANIFEST).is_file():
        return Path(text)
    if text and (Path(text) / "config.json").is_file():
        raise UsageError(
            f"artifact {text!r}: a model's folder, and no artifact; recipes take it as paths.model={text}, and "
            "`posttrain generate` and `posttrain serve` as it is"
        )
    run, _, stage = text.partition("/")
    if stage and (runs := root / "runs" / run).is_dir():
        return _of_run(RunDirectory(root.resolve(), runs.resolve().name), stage)
    directories = artifact_directories(root)
    names = {path.name: path for path in directories}
    if text in names:
        return names[text]
    of_stage = [path for path in directories if path.name.rpartition("-")[0] == text]
    found = of_stage or [path for path in directories if _starts(path, text)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"artifact {text!r}: could be {', '.join(path.name for path in found)}; give more of the name")
    hint = did_you_mean(text, [*names, *(name.rpartition("-")[0] for name in names)]) or _known(list(names))
    raise UsageError(f"artifact {text!r}: not in {root / 'artifacts'}{hint}")


def find_model(root: Path, text: str) -> Path:
    """Return the folder of a model: a Hugging Face one as it is, otherwise the artifact that ``text`` means.

    Raises UsageError as `find_artifact` does.
    """
    folder = Path(text)
    is_plain = text and (folder / "config.json").is_file() and not (folder / MANIFEST).is_file()
    return folder if is_plain else find_artifact(root, text)


def _of_run(run: RunDirectory, stage: str) -> Path:
    """Return the artifact that a run made or took as a stage; raise UsageError where it has none yet."""
    stages = read_stages(run)
    if stage not in stages:
        raise UsageError(f"artifact {run.name}/{stage}: no such stage of that run{did_you_mean(stage, stages)}")
    made = committed(StageSpec.read(run.spec(stage))) if run.spec(stage).exists() else None
    if made is None:
        raise UsageError(f"artifact {run.name}/{stage}: not made yet; posttrain status {run.name} says why")
    return made.directory


def _starts(directory: Path, text: str) -> bool:
    if directory.name.startswith(text):
        return True
    manifest = _manifest(directory)
    return manifest is not None and (manifest.key.startswith(text) or manifest.digest.startswith(text))


def _manifest(directory: Path) -> Manifest | None:
    try:
        return read_manifest(directory)
    except UsageError:
        return None


def _known(names: list[str]) -> str:
    shown = ", ".join(names[:5]) + (" …" if len(names) > 5 else "")
    return f"; known: {shown}" if names else "; it holds no artifact yet"
