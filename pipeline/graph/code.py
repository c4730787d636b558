"""The digest of the code that a stage runs: its module and everything of posttrain that this module imports.

Imports are found by parsing, not by importing, so that a finished pipeline is recognised without loading torch. What is
hashed of a module is its syntax tree without docstrings: comments, docstrings and the layout of lines change nothing.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import importlib
import re
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from importlib.util import resolve_name
from pathlib import Path
from typing import Any

from posttrain.stage.files import canonical_json, sha256_text

ROOT = "posttrain"
OUTSIDE = (
    "posttrain.stage.errors",
    "posttrain.stage.foreign",
    "posttrain.stage.heartbeat",
    "posttrain.stage.leash",
    "posttrain.stage.outcome",
    "posttrain.stage.outlet",
    "posttrain.stage.progress",
    "posttrain.stage.ranks",
    "posttrain.stage.tracking",
    "posttrain.stage.trackers",
    "posttrain.stage.wandb*",
    "posttrain.train.rollouts.samples",
)
"""Modules that track, display or say something and cannot change what a stage computes; patterns of names."""
_FILE_NAME = re.compile(r"[\w.-]+(/[\w.-]+)*\.\w+")
_QUOTED = re.compile(r"[\"']([\w./-]+\.\w+)[\"']")


@dataclasses.dataclass(frozen=True)
class _Source:
    """What one source file says."""

    sha256: str
    imports: tuple[str, ...]
    """Every dotted name that it may import, function-level imports included."""
    texts: frozenset[str]
    """Its strings that may name a file or a package."""


def code_digest(module: str) -> str:
    """Return the SHA-256 over a module, its transitive imports and the data files that they name."""
    return sha256_text(canonical_json(code_parts(module)))


def code_parts(module: str) -> dict[str, str]:
    """Return what `code_digest` is the hash of: the SHA-256 of what counts of each file, by the file's name."""
    return {name: _read(path).sha256 for name, path in code_files(module).items()}


def code_files(module: str) -> dict[str, Path]:
    """Return ``{name: file}`` of a module, its transitive imports within posttrain and the data files that they name.

    The packages above a module count, since importing it runs them; what is `OUTSIDE` does not. A data file (a
    template, say) counts when a string of the module is its path below the module's folder, or below a package that
    another string of it names; so does a data file that a data file names, as one template includes another.
    """
    found: dict[str, Path] = {}
    pending = [module]
    while pending:
        name = pending.pop()
        path = module_file(name)
        if path is None or name in found or is_outside(name):
            continue
        found[name] = path
        source = _read(path)
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        pending += [*_packages_above(name), *(resolve_name(imported, package) for imported in source.imports)]
        found.update({f"{name}: {text}": file for text, file in _data_files(source.texts, path.parent)})
    return found


def is_outside(name: str) -> bool:
    """Return whether a module cannot change what a stage computes."""
    return any(fnmatch(name, pattern) for pattern in OUTSIDE)


def module_file(name: str) -> Path | None:
    """Return the source file of a posttrain module or package, or None when the name is neither."""
    root, _, rest = name.partition(".")
    folder, *below = rest.split(".")
    directory = _folder(folder) if root == ROOT and folder else None
    if directory is None:
        return None
    place = directory.joinpath(*below)
    candidates = (place / "__init__.py", *([place.with_suffix(".py")] if below else []))
    return next((path for path in candidates if path.is_file()), None)


def _packages_above(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(2, len(parts))]


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
    if path.suffix != ".py":
        text = content.decode("utf-8", errors="replace")
        return _Source(hashlib.sha256(content).hexdigest(), (), frozenset(_QUOTED.findall(text)))
    tree = ast.parse(content, filename=str(path))
    imports: list[str] = []
    texts: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (f"{node.module}." if node.module else "")
            imports += [origin.rstrip(".") or origin, *(f"{origin}{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _FILE_NAME.fullmatch(node.value):
            texts.add(node.value)
    return _Source(sha256_text(_shape(tree)), tuple(imports), frozenset(texts))


def _shape(value: Any) -> str:
    """Return a syntax tree as text, without docstrings and positions.

    `ast.dump` will not do: between versions of Python it differs in what it leaves out of an empty field.
    """
    if isinstance(value, ast.AST):
        fields = (f"{name}={_shape(part)}" for name, part in ast.iter_fields(value) if part not in (None, []))
        return f"{type(value).__name__}({','.join(fields)})"
    if isinstance(value, list):
        return f"[{','.join(_shape(part) for part in value if not _is_docstring(part))}]"
    return repr(value)


def _is_docstring(node: Any) -> bool:
    """Return whether a statement is a text and nothing else: a docstring of a module, class, function or field."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _data_files(texts: Iterable[str], folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield files that strings name, below a folder or below a package that is such a string, and what those name."""
    packages = [file.parent for text in texts if text.startswith(f"{ROOT}.") and (file := module_file(text))]
    pending = sorted(texts)
    seen: set[Path] = set()
    while pending:
        name = pending.pop()
        for path in (base / name for base in (folder, *packages)):
            if path.is_file() and path.suffix != ".py" and path not in seen:
                seen.add(path)
                yield name, path
                pending += sorted(_read(path).texts)
