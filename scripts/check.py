"""Fail when a Python file has more than 400 lines or a function more than 60.

python scripts/check.py
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60


def python_files(root: Path) -> list[Path]:
    """Return the Python files of a clone, whether committed yet or not; ignored ones left out."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"]
    names = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout.splitlines()
    return [root / name for name in sorted(set(names)) if (root / name).is_file()]


def oversized(path: Path, source: str) -> list[str]:
    """Return one line per ceiling that a source text breaks."""
    found = []
    if (lines := len(source.splitlines())) > MAX_FILE_LINES:
        found.append(f"{path}: {lines} lines, at most {MAX_FILE_LINES}; split the file by concern")
    for node in ast.walk(ast.parse(source, filename=str(path))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            length = node.end_lineno - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                found.append(f"{path}:{node.lineno}: {node.name} has {length} lines, at most {MAX_FUNCTION_LINES}")
    return found


def main() -> int:
    root = Path(__file__).resolve().parents[1]
    files = python_files(root)
    problems = [line for path in files for line in oversized(path.relative_to(root), path.read_text(encoding="utf-8"))]
    print("\n".join(problems) if problems else f"sizes: {len(files)} files within the ceilings")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
