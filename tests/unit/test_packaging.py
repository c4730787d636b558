"""The project as it is installed: packages, pins, import layers and size ceilings."""

import importlib.util
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES: list[str] = PYPROJECT["tool"]["setuptools"]["packages"]
FOLDERS = [name.removeprefix("posttrain.") for name in PACKAGES]


def _sources(suffixes: tuple[str, ...]) -> list[Path]:
    """Relative paths of the files in the package folders."""
    found = [p for folder in FOLDERS for p in (ROOT / folder).rglob("*") if p.suffix in suffixes]
    return [p.relative_to(ROOT) for p in found]


def _copy_of_the_packages(target: Path) -> Path:
    for name in [
        Path("pyproject.toml"),
        Path("README.md"),
        Path("LICENSE"),
        *_sources((".py", ".yaml", ".json", ".j2")),
    ]:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name)
    return target


def test_every_package_on_disk_is_listed_and_every_listed_one_is_on_disk() -> None:
    on_disk = [
        path.parent.relative_to(ROOT).as_posix().replace("/", ".")
        for path in ROOT.rglob("__init__.py")
        if not {".venv", "tests", ".typing", "build", "outputs"} & set(path.relative_to(ROOT).parts)
    ]
    assert sorted(on_disk) == sorted(FOLDERS)
    assert PYPROJECT["tool"]["setuptools"]["package-dir"] == {f"posttrain.{folder}": folder for folder in FOLDERS}


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


def test_the_wheel_holds_every_module_recipe_and_template(tmp_path: Path) -> None:
    clone = _copy_of_the_packages(tmp_path / "clone")
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=clone, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("posttrain/")}
    assert packed == {f"posttrain/{path.as_posix()}" for path in _sources((".py", ".yaml", ".json", ".j2"))}


@pytest.mark.parametrize(
    ("module", "statement", "contract"),
    [
        ("data/records.py", "import posttrain.train.config", "the folders form a DAG"),
        ("plan/__init__.py", "import torch", "what answers at once imports nothing heavy"),
        ("stage/errors.py", "def late():\n    import transformers", "what answers at once imports nothing heavy"),
        ("train/config.py", "import posttrain.data.readers", "training, sampling and evaluation know records"),
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


def test_the_size_check_names_what_is_too_long() -> None:
    spec = importlib.util.spec_from_file_location("check", ROOT / "scripts" / "check.py")
    assert spec is not None and spec.loader is not None
    check = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(check)
    body = "    x = 1\n"
    assert check.oversized(Path("a.py"), "def f():\n" + body * 59) == []
    assert check.oversized(Path("a.py"), "\ndef f():\n" + body * 60) == ["a.py:2: f has 61 lines, at most 60"]
    assert check.oversized(Path("a.py"), "x = 1\n" * 400) == []
    assert check.oversized(Path("a.py"), "x = 1\n" * 401) == ["a.py: 401 lines, at most 400; split the file by concern"]
