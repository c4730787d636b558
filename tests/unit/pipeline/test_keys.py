"""Keys: everything that changes an artifact changes its key, and nothing else does."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from posttrain.pipeline.config.pipeline import PipelineConfig
from posttrain.pipeline.graph.code import code_digest, code_files
from posttrain.pipeline.graph.graph import Stage, build_graph
from posttrain.pipeline.graph.keys import FileHashes, check_external_paths, stage_key
from posttrain.stage.errors import UsageError
from posttrain.stage.schema import build

CLONE = Path(__file__).resolve().parents[3]


def curate(path: Path | str | list[str], **knobs: Any) -> Stage:
    sources = [{"name": "mine", "path": path if isinstance(path, list) else str(path)}]
    node = {"run": "data.curate", "with": {"record_type": "demonstration", "sources": sources, **knobs}}
    (stage,) = build_graph(build(PipelineConfig, {"stages": {"rows": node}}, ""))
    return stage


def key(stage: Stage, files: FileHashes, code: str = "c", seed: int = 0, parents: dict[str, str] | None = None) -> str:
    return stage_key(stage, parents or {}, code, seed, files)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "one"}\n')
    return path


@pytest.fixture
def files(tmp_path: Path) -> FileHashes:
    return FileHashes(tmp_path / "cache" / "hashes.json")


def test_config_code_seed_and_parents_change_the_key(rows: Path, files: FileHashes) -> None:
    keys = [
        key(curate(rows), files),
        key(curate(rows, split_seed=1), files),
        key(curate(rows), files, code="d"),
        key(curate(rows), files, seed=1),
        key(curate(rows), files, parents={"sources": "x"}),
        key(curate(rows), files, parents={"sources": "y"}),
        key(curate(rows), files, parents={"other": "x"}),
    ]
    assert len(set(keys)) == len(keys)
    assert key(curate(rows), files) == keys[0]


def test_a_default_written_out_changes_nothing(rows: Path, files: FileHashes) -> None:
    assert key(curate(rows, eval_fraction=0.05), files) == key(curate(rows), files)


def test_an_outside_file_counts_by_its_bytes_not_its_place(rows: Path, files: FileHashes, tmp_path: Path) -> None:
    before = key(curate(rows), files)
    elsewhere = tmp_path / "elsewhere.jsonl"
    shutil.copy(rows, elsewhere)
    assert key(curate(elsewhere), files) == before
    rows.write_text('{"text": "two"}\n')
    assert key(curate(rows), files) != before


def test_an_outside_folder_counts_by_names_and_bytes(tmp_path: Path, files: FileHashes) -> None:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a").write_text("1")
    digests = [files.digest(folder)]
    (folder / "sub" / "b").write_text("1")
    digests.append(files.digest(folder))
    (folder / "sub" / "b").rename(folder / "sub" / "c")
    digests.append(files.digest(folder))
    assert len(set(digests)) == 3


def test_a_pattern_and_a_list_count_by_the_files_that_they_name(tmp_path: Path, files: FileHashes) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(name)
    (tmp_path / "other.txt").write_text("1")
    paths: list[Any] = [f"{tmp_path}/*.jsonl", [f"{tmp_path}/a.jsonl", f"{tmp_path}/b.jsonl"], str(tmp_path)]
    before = [key(curate(path), files) for path in paths]
    assert len({*before}) == 3
    (tmp_path / "other.txt").write_text("2")
    assert [key(curate(path), files) for path in paths[:2]] == before[:2]
    (tmp_path / "b.jsonl").write_text("c")
    changed = [key(curate(path), files) for path in paths]
    assert not {*before} & {*changed}
    (tmp_path / "c.jsonl").write_text("c")
    assert [key(curate(path), files) for path in paths] != changed
    assert key(curate(paths[1]), files) == changed[1]
    check_external_paths([curate(path) for path in paths])
    with pytest.raises(UsageError, match=r"sources.0.path: .*/\*.csv: no such file"):
        check_external_paths([curate(f"{tmp_path}/*.csv")])
    with pytest.raises(UsageError, match=r"sources.0.path.1: .*/d.jsonl: no such file"):
        check_external_paths([curate([f"{tmp_path}/a.jsonl", f"{tmp_path}/d.jsonl"])])


def test_a_path_below_the_home_folder_is_found(
    rows: Path, tmp_path: Path, files: FileHashes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    check_external_paths([curate("~/rows.jsonl"), curate("~/*.jsonl")])
    assert key(curate("~/rows.jsonl"), files) == key(curate(rows), files)


def test_hashes_are_remembered_until_the_file_changes(rows: Path, tmp_path: Path) -> None:
    cache = tmp_path / "hashes.json"
    first = FileHashes(cache)
    digest = first.digest(rows)
    first.save()
    # A wrong memory would be believed, which proves that the file is not read again …
    cache.write_text(cache.read_text().replace(digest, "remembered"))
    assert FileHashes(cache).digest(rows) == "remembered"
    # … until its modification time moves, even with the same size.
    os.utime(rows, ns=(0, rows.stat().st_mtime_ns + 1))
    assert FileHashes(cache).digest(rows) == digest


@pytest.mark.parametrize("text", ['{"cut sho', "[]", '{"version": 99, "files": {}}', '{"files": [1]}'])
def test_a_damaged_cache_is_only_a_cold_one(rows: Path, tmp_path: Path, text: str) -> None:
    cache = tmp_path / "hashes.json"
    digest = FileHashes(cache).digest(rows)
    cache.write_text(text)
    assert FileHashes(cache).digest(rows) == digest


@pytest.mark.parametrize("replaced", [True, False])
def test_a_file_of_the_same_size_and_time_of_writing_is_read_again(
    rows: Path, files: FileHashes, replaced: bool
) -> None:
    before, stat = files.digest(rows), rows.stat()
    if replaced:
        rows.rename(rows.with_name("old"))
    rows.write_text(rows.with_name("old").read_text().replace("one", "two") if replaced else '{"text": "two"}\n')
    os.utime(rows, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert rows.stat().st_size == stat.st_size
    assert files.digest(rows) != before


def test_what_stands_behind_a_link_to_a_folder_counts(tmp_path: Path, files: FileHashes) -> None:
    folder, behind = tmp_path / "model", tmp_path / "blobs"
    folder.mkdir()
    behind.mkdir()
    (behind / "weights").write_text("1")
    (folder / "sub").symlink_to(behind)
    (behind / "back").symlink_to(folder)  # which is no way round for ever
    digests = [files.digest(folder)]
    (behind / "weights").write_text("2")
    digests.append(files.digest(folder))
    (behind / "more").write_text("2")
    digests.append(files.digest(folder))
    assert len(set(digests)) == 3


def test_the_suffix_that_chooses_the_reader_counts(tmp_path: Path, files: FileHashes) -> None:
    def of(name: str) -> str:
        (tmp_path / name).write_text('{"text": "one"}\n')
        return key(curate(tmp_path / name), files)

    usual = of("rows.jsonl")
    assert of("other.JSONL") == usual
    assert len({usual, of("rows.json"), of("rows.csv"), of("rows.tsv"), of("rows.jsonl.gz")}) == 5
    assert of("v1.2.csv") == of("rows.csv")


def test_a_folder_that_is_named_as_a_dataset_counts_by_its_contents(
    tmp_path: Path, files: FileHashes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    node = {"record_type": "demonstration", "sources": [{"name": "mine", "dataset": "org/words"}]}
    (stage,) = build_graph(build(PipelineConfig, {"stages": {"rows": {"run": "data.curate", "with": node}}}, ""))
    on_the_hub = key(stage, files)
    (tmp_path / "org" / "words").mkdir(parents=True)
    (tmp_path / "org" / "words" / "train.jsonl").write_text('{"text": "one"}\n')
    digests = [on_the_hub, key(stage, files)]
    (tmp_path / "org" / "words" / "train.jsonl").write_text('{"text": "two"}\n')
    digests.append(key(stage, files))
    assert len(set(digests)) == 3


def test_speed_launcher_and_tracking_stay_out_of_the_key(files: FileHashes) -> None:
    def sft(**sections: Any) -> str:
        stages = {
            "base": {"run": "train.base", "with": {"hub_name": "a/b"}},
            "rows": {
                "run": "data.curate",
                "with": {"record_type": "demonstration", "sources": [{"name": "a", "file": "f"}]},
            },
            "tokens": {"run": "data.tokenize", "inputs": {"data": "rows", "model": "base"}},
            "sft": {"run": "train.sft", "inputs": {"model": "base", "data": "tokens"}},
        }
        graph = build_graph(build(PipelineConfig, {"stages": stages, **sections}, ""))
        return key(next(stage for stage in graph if stage.name == "sft"), files)

    plain = sft()
    assert sft(train={"sft": {"micro_batch_size": 1, "save_steps": 7, "gradient_checkpointing": True}}) == plain
    assert sft(distributed={"kind": "ddp", "num_processes": 8}, tracking={"wandb": "online"}) == plain
    assert sft(train={"sft": {"global_batch_size": 32}}) != plain
    assert sft(train={"sft": {"optimizer": {"learning_rate": 1e-3}}}) != plain


def ppo(function: str, rows: Path) -> Stage:
    sources = [{"name": "mine", "path": str(rows)}]
    nodes: dict[str, Any] = {
        "model": {"run": "train.base", "with": {"path": str(rows)}},
        "rows": {"run": "data.curate", "with": {"record_type": "demonstration", "sources": sources}},
        "tokens": {"run": "data.tokenize", "inputs": {"data": "rows", "model": "model"}},
        "ppo": {"run": "train.ppo", "inputs": {"model": "model", "data": "tokens"}},
    }
    nodes["ppo"]["with"] = {"rewards": [{"kind": "python", "function": function}]}
    return next(stage for stage in build_graph(build(PipelineConfig, {"stages": nodes}, "")) if stage.name == "ppo")


def test_a_users_function_counts_by_name_and_by_its_modules_bytes(
    rows: Path, tmp_path: Path, files: FileHashes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    package = tmp_path / "judges"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('a key runs nobody's code')")
    (package / "short.py").write_text("def words(messages, response, reference): return -len(response.split())\n")
    first = key(ppo("judges.short:words", rows), files)
    assert key(ppo("judges.short:other", rows), files) != first
    (package / "short.py").write_text("def words(messages, response, reference): return len(response.split())\n")
    assert key(ppo("judges.short:words", rows), files) != first
    with pytest.raises(UsageError) as error:
        check_external_paths([ppo("judges.long:words", rows)])
    assert str(error.value) == (
        "stages.ppo.with.rewards.0.function: judges.long:words: no such file, folder or module; mend the path"
    )


def test_a_missing_outside_file_names_its_knob(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        check_external_paths([curate(tmp_path / "nowhere.jsonl")])
    assert str(caught.value) == (
        f"stages.rows.with.sources.0.path: {tmp_path}/nowhere.jsonl: no such file, folder or module; mend the path"
    )
    with pytest.raises(UsageError, match=r"^stages.rows.with.sources.0.path: nowhere.jsonl: "):
        check_external_paths([curate("./nowhere.jsonl")])


def test_code_files_follow_imports_templates_and_packages() -> None:
    found = code_files("posttrain.train.sft")
    assert {"posttrain.train.sft", "posttrain.train.engine.fit", "posttrain.stage.entry", "posttrain.train"} <= set(
        found
    )
    assert found["posttrain.data.chat.templates: chat/chatml.jinja"].read_text().startswith("{")
    assert "posttrain.train.dpo" not in found
    assert not any(name.startswith("posttrain.pipeline") for name in found)
    pages = code_files("posttrain.evaluate.report")
    assert {f"posttrain.evaluate.page.render: report.{name}.j2" for name in ("html", "css")} <= set(pages)
    assert "posttrain.train.config" in found and "posttrain.train.config.sft" in found


MODULES = {
    "a": "import posttrain.code_probe.b\n",
    "b": "def late():\n    from posttrain.code_probe import c\n",
    "c": "from posttrain.code_probe.d import thing\nfrom . import e\nTEMPLATE = 'page.txt'\n",
    "d": "thing = 1\n",
    "e": "import json\nimport numpy\n",
    "f": "not_imported = True\n",
}


@pytest.fixture
def probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package `posttrain.code_probe` of small modules, importable for one test."""
    import posttrain

    folder = tmp_path / "code_probe"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "page.txt").write_text("page")
    for name, text in MODULES.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.setattr(posttrain, "__path__", [*posttrain.__path__, str(tmp_path)])
    yield folder
    sys.modules.pop("posttrain.code_probe", None)


def test_every_form_of_import_is_found_without_importing(probe: Path) -> None:
    names = {name.removeprefix("posttrain.code_probe.") for name in code_files("posttrain.code_probe.a")}
    assert names == {"a", "b", "c", "d", "e", "posttrain.code_probe", "c: page.txt"}
    assert "posttrain.code_probe.b" not in sys.modules


def test_the_digest_moves_with_what_is_imported_and_nothing_else(probe: Path) -> None:
    seen = [code_digest("posttrain.code_probe.a")]
    (probe / "f.py").write_text("not_imported = False\n")
    assert code_digest("posttrain.code_probe.a") == seen[0]
    for name in ("e.py", "page.txt", "__init__.py"):
        (probe / name).write_text("edited = 1\n")
        seen.append(code_digest("posttrain.code_probe.a"))
    assert len(set(seen)) == 4


def test_comments_docstrings_and_layout_are_no_code(probe: Path) -> None:
    file = probe / "d.py"
    file.write_text("class Knobs:\n    rate: float = 1.0\n    def f(self):\n        return [1, 2]\n")
    before = code_digest("posttrain.code_probe.a")
    file.write_text(
        '"""A module."""\n\n# a comment\nclass Knobs:\n    """A class."""\n    rate: float = 1.0  # why\n'
        '    """A knob."""\n    def f(self):\n        """Do."""\n        return [\n            1, 2,\n        ]\n'
    )
    assert code_digest("posttrain.code_probe.a") == before
    file.write_text("class Knobs:\n    rate: float = 2.0\n    def f(self):\n        return [1, 2]\n")
    assert code_digest("posttrain.code_probe.a") != before
    file.write_text('class Knobs:\n    rate: float = 1.0\n    def f(self):\n        return "A knob."\n')
    assert code_digest("posttrain.code_probe.a") != before


def test_every_package_above_and_every_included_template_count(probe: Path) -> None:
    (probe / "room" / "inner").mkdir(parents=True)
    (probe / "room" / "__init__.py").write_text("")
    (probe / "room" / "inner" / "__init__.py").write_text("")
    (probe / "room" / "inner" / "m.py").write_text("PAGE = 'page.j2'\n")
    (probe / "room" / "inner" / "page.j2").write_text("{% include 'style.j2' %}")
    (probe / "room" / "inner" / "style.j2").write_text("p {}")
    seen = [code_digest("posttrain.code_probe.room.inner.m")]
    for file, text in (
        ("room/__init__.py", "x = 1"),
        ("room/inner/__init__.py", "x = 1"),
        ("room/inner/style.j2", "q"),
    ):
        (probe / file).write_text(text)
        seen.append(code_digest("posttrain.code_probe.room.inner.m"))
    assert len(set(seen)) == 4
