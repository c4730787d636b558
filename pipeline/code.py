"""The digest of the code that a stage runs: its module and everything of posttrain that this module imports.

Imports are found by parsing, not by importing, so that a finished pipeline is recognised without loading torch.
"""

from __future__ import annotations

import ast
import functools
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

from posttrain.stage.files import canonical_json, sha256_file, sha256_text

ROOT = "posttrain"
_FILE_NAME = re.compile(r"[\w.-]+(/[\w.-]+)*\.\w+")


def code_digest(module: str) -> str:
    """Return the SHA-256 over the files of a module and its transitive imports within posttrain."""
    files = code_files(module)
    return sha256_text(canonical_json({name: sha256_file(path) for name, path in files.items()}))


def code_files(module: str) -> dict[str, Path]:
    """Return ``{name: file}`` of a module, its transitive imports and the data files that they name.

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
        tree = _parsed(path, path.stat().st_mtime_ns)
        pending.extend(_imports(tree, name))
        found.update({f"{name}: {text}": file for text, file in _data_files(tree, path.parent)})
    return found


def module_file(name: str) -> Path | None:
    """Return the source file of a posttrain module or package, or None when the name is neither."""
    parts = name.split(".")
    if parts[0] != ROOT or len(parts) < 2:
        return None
    try:
        folder = Path(importlib.import_module(f"{ROOT}.{parts[1]}").__path__[0])
    except ImportError:
        return None
    candidate = folder.joinpath(*parts[2:]).with_suffix(".py") if len(parts) > 2 else folder / "__init__.py"
    return candidate if candidate.is_file() else None


@functools.cache
def _parsed(path: Path, mtime_ns: int) -> ast.Module:
    return ast.parse(path.read_bytes(), filename=str(path))


def _imports(tree: ast.AST, module: str) -> Iterator[str]:
    """Yield every dotted name that a module may import, function-level imports included."""
    yield module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                origin = ".".join([*module.split(".")[: -node.level], origin]).rstrip(".")
            yield origin
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def _data_files(tree: ast.AST, folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield files that a module's strings name, below its own folder or below a package whose name is such a string."""
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    packages = [file.parent for text in texts if text.startswith(f"{ROOT}.") and (file := module_file(text))]
    for name in sorted(filter(_FILE_NAME.fullmatch, texts)):
        for path in (base / name for base in (folder, *packages)):
            if path.is_file() and path.suffix != ".py":
                yield name, path
