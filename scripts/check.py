"""Hold the project to its ceilings, and print how near it is to each.

    python scripts/check.py

A file has at most 400 lines and opens with a line that says what it holds, a function at most 60, a folder at most 24
modules; fewer than 3 % of the functions of the packages take a whole configuration.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_MODULES = 24
MAX_CONFIG_SHARE = 0.03
NOT_PACKAGED = ("docs", "scripts", "tests")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def python_files(root: Path) -> list[Path]:
    """Return the Python files of a clone, whether committed yet or not, by their path in it; ignored ones left out."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"]
    names = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout.splitlines()
    return [Path(name) for name in sorted(set(names)) if (root / name).is_file()]


def functions_of(source: str, path: Path) -> Iterator[Function]:
    """Yield every function of a source text, nested ones and methods too."""
    for node in ast.walk(ast.parse(source, filename=str(path))):
        if isinstance(node, Function):
            yield node


def length_of(function: Function) -> int:
    """Return the lines of a function."""
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1


def whole_configs(sources: dict[Path, str]) -> set[str]:
    """Return the names of the schemas that are no part of another one: those of stages and of the pipeline."""
    fields: dict[str, set[str]] = {}
    for path, text in sources.items():
        for node in ast.walk(ast.parse(text, filename=str(path))):
            if isinstance(node, ast.ClassDef) and any(ast.unparse(mark) == "schema" for mark in node.decorator_list):
                notes = [ast.walk(part.annotation) for part in node.body if isinstance(part, ast.AnnAssign)]
                fields[node.name] = {name.id for note in notes for name in note if isinstance(name, ast.Name)}
    return set(fields) - set().union(*fields.values())


def takes_config(function: Function, configs: set[str]) -> bool:
    """Return whether a parameter of a function is a whole configuration."""
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    notes = [ast.walk(argument.annotation) for argument in arguments if argument.annotation is not None]
    return any(isinstance(name, ast.Name) and name.id in configs for note in notes for name in note)


def oversized(path: Path, source: str) -> list[str]:
    """Return one line per ceiling that a source text breaks."""
    found = []
    if (lines := len(source.splitlines())) > MAX_FILE_LINES:
        found.append(f"{path}: {lines} lines, at most {MAX_FILE_LINES}; split the file by concern")
    return found + [
        f"{path}:{function.lineno}: {function.name} has {length_of(function)} lines, at most {MAX_FUNCTION_LINES}"
        for function in functions_of(source, path)
        if length_of(function) > MAX_FUNCTION_LINES
    ]


def silent(path: Path, source: str) -> list[str]:
    """Return a line for a file that does not open by saying what it holds; an empty one holds nothing."""
    first = (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
    if first.strip() or not source.strip():
        return []
    return [f"{path}: no opening line; say in a docstring what the file holds"]


def crowded(files: list[Path]) -> list[str]:
    """Return a line for each folder with too many modules."""
    return [
        f"{folder}: {count} modules, at most {MAX_MODULES}; give some of them a room of their own"
        for folder, count in modules_by_folder(files).items()
        if count > MAX_MODULES
    ]


def modules_by_folder(files: list[Path]) -> Counter[Path]:
    """Return how many modules each folder holds, without `__init__.py`."""
    return Counter(path.parent for path in files if path.name != "__init__.py")


def figures(sources: dict[Path, str]) -> list[str]:
    """Return where the project stands, a line for each ceiling."""
    lengths = {path: len(source.splitlines()) for path, source in sources.items()}
    longest = max(lengths, key=lambda path: lengths[path])
    functions = [(length_of(f), f"{path}:{f.name}") for path, text in sources.items() for f in functions_of(text, path)]
    size, where = max(functions)
    folder, modules = modules_by_folder(list(sources)).most_common(1)[0]
    return [
        f"{len(sources)} files: the longest has {lengths[longest]} lines of {MAX_FILE_LINES} ({longest})",
        f"{len(functions)} functions: the longest has {size} lines of {MAX_FUNCTION_LINES} ({where})",
        f"modules in a folder: at most {modules} of {MAX_MODULES} ({folder}/)",
    ]


def config_share(sources: dict[Path, str]) -> tuple[int, int]:
    """Return how many functions of the packages take a whole configuration, and how many there are."""
    packaged = {path: text for path, text in sources.items() if path.parts[0] not in NOT_PACKAGED}
    configs = whole_configs(packaged)
    taken = [takes_config(f, configs) for path, text in packaged.items() for f in functions_of(text, path)]
    return sum(taken), len(taken)


def main() -> int:
    root = Path(__file__).resolve().parents[1]
    files = python_files(root)
    sources = {path: (root / path).read_text(encoding="utf-8") for path in files}
    problems = [line for path, text in sources.items() for line in (*oversized(path, text), *silent(path, text))]
    problems += crowded(files)
    taking, all_functions = config_share(sources)
    share = f"functions that take a whole configuration: {taking} of {all_functions} ({taking / all_functions:.1%})"
    if taking >= MAX_CONFIG_SHARE * all_functions:
        problems.append(f"{share}, at most {MAX_CONFIG_SHARE:.0%}; give them the values that they use")
    print("\n".join([*figures(sources), share]))
    print("\n".join(problems) if problems else "all within the ceilings")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
