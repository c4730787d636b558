"""`posttrain generate --server`: the artifact gives tokenizer and name, the server the responses."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from build_artifacts import build_model
from scripted_server import Scripted, whole

from posttrain.pipeline.cli import main
from posttrain.pipeline.commands.generate import generate_command, sampling_knobs
from posttrain.sample import respond
from posttrain.sample.config.asking import Asking


def test_a_file_is_answered_through_a_server_that_is_told_the_schema(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    model = build_model(tmp_path)
    (model / "model.safetensors").chmod(0o644)
    monkeypatch.setenv("POSTTRAIN_API_KEY", "sk-123456")
    monkeypatch.setattr(respond, "load_policy", None)  # whose weights are not read
    scripted = Scripted()
    scripted.answers = [whole(text='{"n":1}', token_ids=[40])]
    try:
        files = {"file": str(tmp_path / "prompts.jsonl"), "out": str(tmp_path / "out.jsonl")}
        asking = Asking(**files, constraint=("schema", str(tmp_path / "schema.json")), server=scripted.url)
        monkeypatch.setattr(sys, "argv", generate_command(model, sampling_knobs("general", []), asking)[2:])
        assert respond.main() == 0
    finally:
        scripted.end()
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["responses"][0]["text"] for row in rows] == ['{"n":1}'] * 2
    assert {body["model"] for body in scripted.bodies} == {"base"}
    assert all(body["structured_outputs"]["json"]["required"] == ["n"] for body in scripted.bodies)
    assert {own["Authorization"] for own in scripted.headers} == {"Bearer sk-123456"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--server", "http://x"], "--server http://x: a chat needs the model itself"),
        (["--prompt", "a", "--server", "http://x", "--cache", "f"], "--cache needs the model itself"),
        (["--prompt", "a", "--served-name", "m"], "--served-name m: by which server? give --server URL"),
    ],
)
def test_what_a_server_cannot_do_is_said_before_anything_is_loaded(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = build_model(tmp_path)
    assert main(["generate", str(model), *words, "--root", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
