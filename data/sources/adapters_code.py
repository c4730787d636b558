"""Requests for code, made of documented functions: Python is taken apart by its syntax tree, and never run.

A row is a file. Each function at its top level that says in a docstring what it does becomes a demonstration: the
signature and the docstring ask, the function without its docstring answers. Functions without one are no rows.
"""

from __future__ import annotations

import ast
import inspect
import warnings
from collections.abc import Iterable, Iterator

from posttrain.data.sources.readers import BadRow, Row
from posttrain.data.sources.row_values import Drop, Payload, RowError, Values, checked_text
from posttrain.data.sources.turns import assistant, user

LEAST_WORDS = 5
"""Words of a docstring that asks for something."""
MOST_LINES = 100
"""Lines of a function that answers one request."""
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(rows: Iterable[Row | BadRow]) -> Iterator[Row | BadRow]:
    """Yield a row for each documented function of each file, and one for a file that has none or is no Python."""
    for row in rows:
        if isinstance(row, BadRow):
            yield row
            continue
        try:
            code = checked_text(row.values.get("code"), "code")
        except RowError as error:
            yield BadRow(row.position, str(error), row.values)
            continue
        own = {name: value for name, value in row.values.items() if name != "code"}
        tree = _parsed(code)
        found = [] if tree is None else [node for node in tree.body if isinstance(node, Function)]
        documented = [node for node in found if ast.get_docstring(node)]
        if not documented:
            why = "no_syntax" if tree is None else "no_documented_function"
            yield Row(row.position, {**own, "dropped": why})
        for node in documented:
            named = {"id": f"{own['id']}/{node.name}:{node.lineno}"} if own.get("id") is not None else {}
            yield Row(f"{row.position}/{node.name}", {**own, **named, **_taken_apart(node, code)})


def demonstration(row: Values) -> Payload | Drop:
    """Return the demonstration of a `functions` row, or why it is none."""
    if "dropped" in row:
        return Drop(row["dropped"])
    asked = f"Write the Python function `{row['signature']}`.\n\n{row['docstring']}"
    return {"prompt": [user(asked)], "completion": [assistant(f"```python\n{row['body']}\n```")]}


def asks_nothing(row: Values) -> bool:
    """Return whether a row with code has no prompt beside it, of which the code would be the answer."""
    return not {"prompt", "instruction", "question", "messages"} & row.keys()


def _parsed(code: str) -> ast.Module | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the code's own escapes deserve
        try:
            return ast.parse(code)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None


def _taken_apart(node: Function, code: str) -> Values:
    docstring = inspect.cleandoc(ast.get_docstring(node) or "")
    if node.name.startswith(("_", "test")):
        return {"dropped": "private_or_test"}
    if len(docstring.split()) < LEAST_WORDS:
        return {"dropped": "short_docstring"}
    if _is_trivial(node.body[1:]):
        return {"dropped": "trivial_body"}
    if (node.end_lineno or 0) - node.lineno >= MOST_LINES:
        return {"dropped": "long_function"}
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    kind = "async " if isinstance(node, ast.AsyncFunctionDef) else ""
    signature = f"{kind}{node.name}({ast.unparse(node.args)}){returns}"
    return {"signature": signature, "docstring": docstring, "body": _without_docstring(node, code)}


def _is_trivial(body: list[ast.stmt]) -> bool:
    """Return whether statements do nothing: none, ``pass``, ``...`` or raising alone."""
    return all(
        isinstance(each, (ast.Pass, ast.Raise)) or (isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant))
        for each in body
    )


def _without_docstring(node: Function, code: str) -> str:
    """Return the source of a function, comments and all, without the lines of its docstring."""
    said, after = node.body[0], node.body[1]
    lines = code.splitlines()
    start = min([node.lineno, *(each.lineno for each in node.decorator_list)]) - 1
    alone = (
        said.lineno > node.lineno
        and after.lineno > (said.end_lineno or 0)
        and not lines[said.lineno - 2].endswith("\\")
    )
    if not alone:
        node.body = node.body[1:]
        return ast.unparse(node)
    return "\n".join([*lines[start : said.lineno - 1], *lines[said.end_lineno : node.end_lineno]])
