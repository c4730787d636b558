"""A figure and where it comes from: its value is computed from the formula that is printed, so that both agree."""

from __future__ import annotations

import ast
import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

_OPERATORS: dict[type[ast.AST], Callable[..., float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
}
_FUNCTIONS: dict[str, Callable[..., float]] = {
    "min": min,
    "max": max,
    "ceil": math.ceil,
    "floor": math.floor,
    "exp": math.exp,
}
_SIGNS = {"·": "*", "−": "-", "^": "**", "×": "*"}


@dataclasses.dataclass(frozen=True)
class Figure:
    """One number of a plan."""

    name: str
    value: float
    unit: str
    formula: str
    numbers: Mapping[str, float]
    """What the names in the formula stand for."""
    source: str
    """Convention, and where the formula or the number comes from."""

    def worked(self) -> str:
        """Return the formula with the numbers put in: ``2 · 32 · 8 · 128 · 2``."""
        words, word = [], ""
        for sign in f"{self.formula} ":
            if sign.isalnum() or sign in "_.":
                word += sign
                continue
            words += [_shown(self.numbers[word]) if word in self.numbers else word, sign]
            word = ""
        return "".join(words).strip()

    def as_json(self) -> dict[str, Any]:
        """Return the figure as plain values."""
        return {**dataclasses.asdict(self), "numbers": dict(self.numbers), "worked": self.worked()}


def figure(name: str, unit: str, formula: str, source: str, **numbers: float) -> Figure:
    """Return the figure that a formula gives: ``+ − · / ^``, min, max, ceil, floor and exp over named numbers."""
    value = _value(_parsed(formula), numbers)
    used = {part.id for part in ast.walk(_parsed(formula)) if isinstance(part, ast.Name)}
    return Figure(name, value, unit, formula, {key: number for key, number in numbers.items() if key in used}, source)


@functools.cache
def _parsed(formula: str) -> ast.expr:
    for sign, plain in _SIGNS.items():
        formula = formula.replace(sign, plain)
    return ast.parse(formula, mode="eval").body


def _value(node: ast.AST, numbers: Mapping[str, float]) -> float:
    if isinstance(node, ast.Constant):
        return float(node.value) if isinstance(node.value, float) else node.value  # type: ignore[return-value]
    if isinstance(node, ast.Name):
        return numbers[node.id]
    if isinstance(node, ast.BinOp):
        return _OPERATORS[type(node.op)](_value(node.left, numbers), _value(node.right, numbers))
    if isinstance(node, ast.UnaryOp):
        return _OPERATORS[type(node.op)](_value(node.operand, numbers))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return _FUNCTIONS[node.func.id](*(_value(argument, numbers) for argument in node.args))
    raise ValueError(f"not a formula: {ast.unparse(node)}")


def _shown(number: float) -> str:
    if number == round(number) and abs(number) < 1e15:
        return f"{round(number):,}"
    return f"{number:.6g}"
