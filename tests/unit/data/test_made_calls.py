"""The rows of `scripts/make_function_calls.py`: nothing that is asked was taught, and only the right call is right."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.data.checks.scorers import check_reference, score

SCRIPT = Path(__file__).parents[3] / "scripts" / "make_function_calls.py"


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    spec = importlib.util.spec_from_file_location("make_function_calls", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = tmp_path_factory.mktemp("rows")
    module.main(folder)
    return {path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in folder.iterdir()}


def written(response: list[dict[str, Any]]) -> str:
    """Return a response as a model writes it."""
    return "".join(json.dumps(call["function"]) for message in response for call in message["tool_calls"])


def test_no_question_no_city_and_no_amount_is_both_taught_and_asked(rows: dict[str, list[dict[str, Any]]]) -> None:
    taught = {word for row in rows["demonstrations"] for word in row["messages"][0]["content"].strip("?").split()}
    asked = [row["prompt"][0]["content"].strip("?").split() for row in rows["items"]]
    assert len(rows["demonstrations"]) == len(rows["comparisons"]) == 64
    assert len(asked) == 2 * 24
    assert all(set(words) - taught for words in asked)


def test_the_right_call_alone_is_right_and_both_are_valid(rows: dict[str, list[dict[str, Any]]]) -> None:
    for row in rows["comparisons"]:
        right, wrong = written(row["chosen"]), written(row["rejected"])
        wanted = json.dumps([call["function"] for call in row["chosen"][0]["tool_calls"]])
        assert (score("call", right, wanted), score("call", wrong, wanted)) == (1, 0)
        assert score("valid_call", right, json.dumps(row["tools"])) == 1
        assert score("valid_call", wrong, json.dumps(row["tools"])) == 1


def test_references_of_the_items_can_judge(rows: dict[str, list[dict[str, Any]]]) -> None:
    for row in rows["items"]:
        check_reference(row["scorer"], row["reference"])
        made = json.loads(row["reference"])[0] if row["scorer"] == "call" else {"name": "get_weather"}
        assert score(row["scorer"], json.dumps(made), row["reference"]) == float(row["scorer"] == "call")
