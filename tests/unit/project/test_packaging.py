"""The project as it is installed: packages, pins, import layers and size ceilings."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[3]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FOLDERS = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))
PACKAGED = (".py", ".yaml", ".json", ".j2", ".jinja", ".lark")


def _sources() -> list[Path]:
    """Relative paths of the files in the package folders."""
    found = [p for folder in FOLDERS for p in (ROOT / folder).rglob("*") if p.suffix in PACKAGED]
    return [p.relative_to(ROOT) for p in found]


def _copy_of_the_packages(target: Path) -> Path:
    for name in [Path("pyproject.toml"), Path("setup.py"), Path("README.md"), Path("LICENSE"), *_sources()]:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name)
    return target


def test_every_folder_with_modules_is_a_package() -> None:
    folders = {path.parent for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    assert [path for path in folders if not (path / "__init__.py").is_file()] == []


@pytest.mark.parametrize("folder", [folder for folder in FOLDERS if folder not in ("conf", "slurm")])
def test_a_room_opens_without_running_anything(folder: str) -> None:
    rooms = [path for path in (ROOT / folder).rglob("__init__.py") if path.parent != ROOT / folder]
    assert [path for path in rooms if path.read_text(encoding="utf-8")] == []


def test_the_links_for_type_checkers_mirror_the_packages() -> None:
    links = {path.name: path.resolve() for path in (ROOT / ".typing" / "posttrain").iterdir()}
    assert links == {folder: ROOT / folder for folder in FOLDERS}


@pytest.mark.parametrize("folder", [folder for folder in FOLDERS if folder not in ("conf", "slurm")])
def test_a_bare_import_is_refused(folder: str) -> None:
    command = [sys.executable, "-c", f"import {folder}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert f"ImportError: import posttrain.{folder}, not {folder}" in done.stderr


def test_every_direct_dependency_is_pinned_within_its_range() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    project = PYPROJECT["project"]
    for text in sum(project["optional-dependencies"].values(), project["dependencies"]):
        requirement = Requirement(text)
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin is not None, f"{text} has no line in constraints.txt"
        assert requirement.specifier.contains(pin), f"constraints.txt pins {requirement.name}=={pin}, outside {text}"


def _packed(clone: Path, target: Path) -> set[str]:
    """Return what the wheel of a clone holds."""
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(target)], cwd=clone, check=True, capture_output=True)
    (wheel,) = target.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if name.startswith("posttrain/")}


def test_the_wheel_holds_every_module_recipe_and_template(tmp_path: Path) -> None:
    clone = _copy_of_the_packages(tmp_path / "clone")
    assert _packed(clone, tmp_path) == {f"posttrain/{path.as_posix()}" for path in _sources()}


def test_a_new_room_is_in_the_wheel_without_being_listed(tmp_path: Path) -> None:
    clone = _copy_of_the_packages(tmp_path / "clone")
    room = clone / "train" / "attic" / "inner"
    room.mkdir(parents=True)
    for path in (room.parent / "__init__.py", room / "__init__.py", room / "box.py"):
        path.write_text("")
    (room / "page.j2").write_text("")
    assert {"posttrain/train/attic/inner/box.py", "posttrain/train/attic/inner/page.j2"} <= _packed(clone, tmp_path)


@pytest.mark.parametrize(
    ("module", "statement", "contract"),
    [
        ("data/records.py", "import posttrain.train.config.sft", "the folders form a DAG"),
        ("plan/__init__.py", "import torch", "what answers at once imports nothing heavy"),
        ("stage/errors.py", "def late():\n    import transformers", "what answers at once imports nothing heavy"),
        (
            "train/rows/dataset.py",
            "import posttrain.data.sources.readers",
            "training, sampling and evaluation know records",
        ),
        ("train/config/dpo.py", "import torch", "what answers at once imports nothing heavy"),
        ("train/maths/advantages.py", "import posttrain.train.nets.policy", "the rooms of train"),
        ("sample/structured/ladder.py", "import posttrain.sample.engine.sampler", "the rooms of sample"),
        ("pipeline/slurm/queue.py", "import posttrain.pipeline.local.launch", "the rooms of pipeline"),
        ("evaluate/measure/heldout.py", "import posttrain.evaluate.page.figures.plots", "the rooms of evaluate"),
        ("data/checks/scorers.py", "import posttrain.data.curate", "the rooms of data"),
        ("models/cpu/linear.py", "import posttrain.models.load", "the rooms of models"),
    ],
)
def test_a_forbidden_import_breaks_its_contract(tmp_path: Path, module: str, statement: str, contract: str) -> None:
    package = _copy_of_the_packages(tmp_path / "posttrain")
    assert "BROKEN" not in _lint_imports(package)
    with (package / module).open("a", encoding="utf-8") as file:
        file.write(f"\n{statement}\n")
    broken = [line for line in _lint_imports(package).splitlines() if " BROKEN" in line]
    assert [line for line in broken if line.startswith(contract)]


def _lint_imports(package: Path) -> str:
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    environment = {**os.environ, "PYTHONPATH": str(package.parent), "COLUMNS": "200"}
    return subprocess.run(command, cwd=package, env=environment, capture_output=True, text=True, check=False).stdout


def _check() -> Any:
    spec = importlib.util.spec_from_file_location("check", ROOT / "scripts" / "check.py")
    assert spec is not None and spec.loader is not None
    check = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(check)
    return check


def test_the_size_check_names_what_is_too_long() -> None:
    check = _check()
    body = "    x = 1\n"
    assert check.oversized(Path("a.py"), "def f():\n" + body * 59) == []
    assert check.oversized(Path("a.py"), "\ndef f():\n" + body * 60) == ["a.py:2: f has 61 lines, at most 60"]
    assert check.oversized(Path("a.py"), "x = 1\n" * 400) == []
    assert check.oversized(Path("a.py"), "x = 1\n" * 401) == ["a.py: 401 lines, at most 400; split the file by concern"]


def test_the_check_names_a_crowded_folder_a_silent_file_and_who_takes_a_configuration() -> None:
    check = _check()
    files = [Path("room") / f"m{number}.py" for number in range(24)]
    assert check.crowded([*files, Path("room/__init__.py")]) == []
    assert check.crowded([*files, Path("room/one_more.py")]) == [
        "room: 25 modules, at most 24; give some of them a room of their own"
    ]
    assert check.silent(Path("a.py"), '"""Says what it holds."""\nx = 1\n') == []
    assert check.silent(Path("__init__.py"), "") == []
    assert check.silent(Path("a.py"), "x = 1\n") == ["a.py: no opening line; say in a docstring what the file holds"]
    schemas = (
        "@schema\nclass PartConfig:\n    x: int = 1\n@schema\nclass StageConfig:\n    part: PartConfig | None = None\n"
    )
    functions = (
        "def a(c: StageConfig): ...\ndef b(c: PartConfig): ...\n"
        "class C:\n    def d(self, *, c: StageConfig | None = None): ...\n"
    )
    assert check.whole_configs({Path("a.py"): schemas}) == {"StageConfig"}
    assert check.config_share({Path("a.py"): schemas, Path("b.py"): functions}) == (2, 3)


def test_the_container_has_a_python_that_is_supported_and_leaves_no_environment_in() -> None:
    lines = (ROOT / "Containerfile").read_text(encoding="utf-8").splitlines()
    (base,) = (line for line in lines if line.startswith("FROM "))
    version = re.fullmatch(r"FROM python:(\d+\.\d+)-slim", base)
    wanted = PYPROJECT["project"]["requires-python"]
    assert version is not None and version[1] in SpecifierSet(wanted)
    assert any(line.startswith("RUN pip install") and "--constraint /src/constraints.txt" in line for line in lines)
    assert (ROOT / "constraints.txt").is_file()
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert {".venv", ".git", "outputs", "build"} <= {*ignored}
