"""The digest of the code that a stage runs: its module and everything of posttrain that this module imports.

Imports are found by parsing, not by importing, so that a finished pipeline is recognised without loading torch.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import importlib
import re
from collections.abc import Iterable, Iterator
from importlib.util import resolve_name
from pathlib import Path

from posttrain.stage.files import canonical_json, sha256_text

ROOT = "posttrain"
_FILE_NAME = re.compile(r"[\w.-]+(/[\w.-]+)*\.\w+")


@dataclasses.dataclass(frozen=True)
class _Source:
    """What one source file says."""

    sha256: str
    imports: tuple[str, ...]
    """Every dotted name that it may import, function-level imports included."""
    texts: frozenset[str]
    """Its strings that may name a file or a package."""


def code_digest(module: str) -> str:
    """Return the SHA-256 over the files of a module, of its transitive imports and of the data files that they name."""
    return sha256_text(canonical_json({name: _read(path).sha256 for name, path in code_files(module).items()}))


def code_files(module: str) -> dict[str, Path]:
    """Return ``{name: file}`` of a module, its transitive imports within posttrain and the data files that they name.

    A data file (a template, say) counts when a string of the module is its path below the module's folder, or below a
    package that another string of it names.
    """
    found: dict[str, Path] = {}
    pending = [module]
    while pending:
        name = pending.pop()
        path = module_file(name)
        if path is None or name in found:
            continue
        found[name] = path
        source = _read(path)
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        pending += [package, *(resolve_name(imported, package) for imported in source.imports)]
        found.update({f"{name}: {text}": file for text, file in _data_files(source.texts, path.parent)})
    return found


def module_file(name: str) -> Path | None:
    """Return the source file of a posttrain module or package, or None when the name is neither."""
    root, _, rest = name.partition(".")
    folder, *below = rest.split(".")
    directory = _folder(folder) if root == ROOT and folder else None
    if directory is None:
        return None
    candidate = directory.joinpath(*below).with_suffix(".py") if below else directory / "__init__.py"
    return candidate if candidate.is_file() else None


def _folder(name: str) -> Path | None:
    try:
        return Path(importlib.import_module(f"{ROOT}.{name}").__path__[0])
    except ImportError:
        return None


def _read(path: Path) -> _Source:
    return _read_version(path, path.stat().st_mtime_ns)


@functools.cache
def _read_version(path: Path, mtime_ns: int) -> _Source:
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    if path.suffix != ".py":
        return _Source(sha256, (), frozenset())
    imports: list[str] = []
    texts: set[str] = set()
    for node in ast.walk(ast.parse(content, filename=str(path))):
        if isinstance(node, ast.Import):
            imports += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (f"{node.module}." if node.module else "")
            imports += [origin.rstrip(".") or origin, *(f"{origin}{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _FILE_NAME.fullmatch(node.value):
            texts.add(node.value)
    return _Source(sha256, tuple(imports), frozenset(texts))


def _data_files(texts: Iterable[str], folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield files that a module's strings name, below its own folder or below a package that is such a string."""
    packages = [file.parent for text in texts if text.startswith(f"{ROOT}.") and (file := module_file(text))]
    for name in sorted(texts):
        for path in (base / name for base in (folder, *packages)):
            if path.is_file() and path.suffix != ".py":
                yield name, path
