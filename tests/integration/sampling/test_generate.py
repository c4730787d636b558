"""`posttrain generate` on a tiny model: a file, one prompt, a conversation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from build_artifacts import ENVIRONMENT, build_model

from posttrain.data.chat.pieces import encode_prompts
from posttrain.data.chat.tokenizer import load_tokenizer
from posttrain.data.messages import Conversation
from posttrain.models.load import load_policy
from posttrain.pipeline import cli
from posttrain.pipeline.commands.generate import sampling_knobs
from posttrain.sample import respond
from posttrain.sample.asking.rows import read_rows
from posttrain.sample.asking.talk import chat
from posttrain.sample.choose.select import derived_seed
from posttrain.sample.engine.sampler import Sampler
from posttrain.sample.sampling import SamplingParams
from posttrain.stage.errors import UsageError

GREEDY = SamplingParams(temperature=0, max_tokens=6)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("generate"))


@pytest.fixture(scope="module")
def sampler(model: Path) -> Sampler:
    return Sampler(load_policy(model).eval(), load_tokenizer(model))


def generate(model: Path, *arguments: object, expect: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "posttrain.pipeline.cli", "generate", str(model), *map(str, arguments)]
    done = subprocess.run(
        command, env={**os.environ, **ENVIRONMENT}, input="", capture_output=True, text=True, check=False
    )
    assert done.returncode == expect, done.stderr[-3000:]
    return done


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_a_file_keeps_its_rows_and_gets_the_samplers_responses(model: Path, sampler: Sampler, tmp_path: Path) -> None:
    talk = [user("red"), {"role": "assistant", "content": "blue"}, user("green")]
    rows = [{"prompt": "the dog runs", "id": 7}, {"prompt": talk}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    knobs = ("temperature=0.8", "max_tokens=6", "num_samples=2", "seed=5", "--system", "be brief")
    for out in ("first", "cached"):
        generate(model, *knobs, "--file", tmp_path / "in.jsonl", "--out", tmp_path / out, "--cache", tmp_path / "cache")
    first, cached = ((tmp_path / name).read_text(encoding="utf-8") for name in ("first", "cached"))
    assert first == cached
    found = [json.loads(line) for line in first.splitlines()]
    assert [{k: v for k, v in row.items() if k != "responses"} for row in found] == rows
    system = {"role": "system", "content": "be brief"}
    prompts = encode_prompts(
        sampler.tokenizer, [Conversation([system, *turns]) for turns in ([user("the dog runs")], talk)]
    )
    params = SamplingParams(temperature=0.8, top_p=0.9, max_tokens=6, num_samples=2, seed=5)  # general's top_p
    expected = [[sample.text for sample in own] for own in sampler.generate(prompts, params)]
    assert [[response["text"] for response in row["responses"]] for row in found] == expected


def test_responses_are_what_a_constraint_says(model: Path, tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0}}, "required": ["n"]}
    (tmp_path / "schema.json").write_text(json.dumps(schema | {"additionalProperties": False}), encoding="utf-8")
    (tmp_path / "in.jsonl").write_text('{"prompt": "red"}\n{"prompt": "blue"}\n', encoding="utf-8")
    files = ("--file", tmp_path / "in.jsonl", "--out", tmp_path / "out.jsonl")
    generate(model, "max_tokens=40", "num_samples=2", *files, "--schema", tmp_path / "schema.json")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    documents = [json.loads(response["text"]) for row in rows for response in row["responses"]]
    assert len(documents) == 4 and all(document.keys() == {"n"} and document["n"] >= 0 for document in documents)
    assert generate(model, "max_tokens=20", "--prompt", "red", "--choices", "yes, no").stdout.strip() in ("yes", "no")


def test_one_prompt_is_answered_on_the_output(model: Path, sampler: Sampler) -> None:
    ((sample,),) = sampler.generate(encode_prompts(sampler.tokenizer, [Conversation([user("red blue")])]), GREEDY)
    done = generate(model, "--prompt", "red blue", "--preset", "eval", "max_tokens=6")
    assert done.stdout == f"{sample.text}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["temprature=1"], "sampling.temprature: unknown key; did you mean 'temperature'?"),
        (["temperature=-1"], "sampling.temperature: -1: input should be greater than or equal to 0"),
        (["--preset", "creativ"], "--preset creativ: not one of"),
    ],
)
def test_a_mistaken_knob_is_one_line(
    model: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["generate", str(model), *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


@pytest.mark.parametrize(
    ("asking", "message"),
    [
        ({"file": "rows.jsonl", "out": "new.jsonl"}, "rows.jsonl:2: prompt.0.role: Input should be"),
        ({"file": "rows.jsonl", "out": "rows.jsonl"}, "rows.jsonl: exists already"),
        ({"prompt": "a", "constraint": ["schema", "gone.json"]}, "--schema: gone.json: "),
        ({"prompt": "a", "constraint": ["schema", "rows.jsonl"]}, "--schema: rows.jsonl: not JSON"),
        ({"prompt": "a", "first_valid": 2, "scorer": "number"}, "--prompt: no reference, which number judges by"),
        ({"prompt": "a", "first_valid": 2, "scorer": "nmber"}, "scorer 'nmber': unknown; use one of"),
        ({"prompt": "a", "best_of": 2, "by": "verifier", "scorer": "no:f"}, "--scorer: 'no:f': No module named 'no'"),
        ({"prompt": "a", "cite": ""}, "--prompt: no passages; give it a list of texts as"),
        ({"prompt": "a", "cite": "gone.txt"}, "--cite: gone.txt: "),
        ({"prompt": "a", "cite": "rows.jsonl"}, 'rows.jsonl:1: no text; give {"text": TEXT}'),
        ({"prompt": "a", "best_of": 2, "by": "reward", "reward": "MODEL"}, "MODEL: a model artifact; give a reward"),
        (
            {"prompt": "a", "ladder": True, "constraint": ["schema", "any.json"], "reference": "{"},
            "--prompt: reference: not JSON",
        ),
    ],
)
def test_other_mistakes_are_one_line_before_the_model_loads(
    model: Path,
    tmp_path: Path,
    asking: dict[str, object],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n{"prompt": [{"role": "usr", "content": "b"}]}\n')
    (tmp_path / "any.json").write_text('{"type": "boolean"}')
    if "reward" in asking:
        asking, message = asking | {"reward": str(model)}, message.replace("MODEL", model.name)
    monkeypatch.setattr(sys, "argv", ["respond", "--model", str(model), "--asking", json.dumps(asking)])
    assert respond.main() == 2
    errors = capsys.readouterr().err
    assert errors.startswith(f"error: {message}") and errors.count("\n") == 1
    assert not (tmp_path / "new.jsonl").exists() and "Loading weights" not in errors


def test_a_file_of_prompts_is_split_at_line_feeds_alone(tmp_path: Path) -> None:
    texts = [f"one{mark}two" for mark in "\u2028\u2029\u0085\x0c"] + ["three"]
    rows = [json.dumps({"prompt": text}, ensure_ascii=False) for text in texts]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(("\ufeff" + "\n \r\n\n".join(rows) + "\r\n").encode())
    assert [row.fields for row in read_rows(path)] == [{"prompt": text} for text in texts]
    path.write_bytes(b'{"prompt": "a"}\n\n{"prompt": "caf\xe9"}\n')
    with pytest.raises(UsageError, match=r"rows\.jsonl:3: not UTF-8 \(.* at byte 16\); save it as UTF-8"):
        read_rows(path)


class Terminal:
    """A person who says what is in a list."""

    def __init__(self, *said: str) -> None:
        self.said = iter(said)
        self.written: list[str] = []

    def read(self, prompt: str) -> str:
        line = next(self.said, None)
        if line is None:
            raise EOFError
        return line

    def turns(self) -> list[str]:
        """Return what was written after the greeting, by line."""
        return "".join(self.written).splitlines()[1:]


def answer(sampler: Sampler, conversation: list[dict[str, str]], params: SamplingParams) -> str:
    ((sample,),) = sampler.generate(encode_prompts(sampler.tokenizer, [Conversation(conversation)]), params)
    return sample.text


def test_a_conversation_streams_and_remembers_until_reset(sampler: Sampler) -> None:
    terminal = Terminal("red", "blue", "/reset", "blue")
    chat(sampler, GREEDY, "", terminal.read, terminal.written.append)
    first = answer(sampler, [user("red")], GREEDY)
    second = answer(sampler, [user("red"), {"role": "assistant", "content": first}, user("blue")], GREEDY)
    third = answer(sampler, [user("blue")], GREEDY)
    assert "\n".join(terminal.turns()) == "\n".join([first, second, third])
    assert len([piece for piece in terminal.written if piece not in ("", "\n")]) > 6


def test_each_turn_of_a_conversation_has_a_seed_of_its_own(sampler: Sampler) -> None:
    terminal = Terminal("red", "/reset", "red")
    params = SamplingParams(max_tokens=6, seed=3)
    chat(sampler, params, "be brief", terminal.read, terminal.written.append)
    asked = [{"role": "system", "content": "be brief"}, user("red")]
    expected = [
        answer(sampler, asked, SamplingParams(max_tokens=6, seed=derived_seed(3, f"turn {turn}"))) for turn in (0, 2)
    ]
    assert "\n".join(terminal.turns()) == "\n".join(expected)
    assert expected[0] != expected[1]


def test_a_conversation_beyond_the_context_says_so_and_goes_on(sampler: Sampler) -> None:
    terminal = Terminal("red " * 200, "red")
    chat(sampler, GREEDY, "", terminal.read, terminal.written.append)
    refusal, *rest = terminal.turns()
    assert refusal.endswith("/reset makes room)")
    assert "\n".join(rest) == answer(sampler, [user("red")], GREEDY)


def test_presets_and_what_changes_them() -> None:
    code = sampling_knobs("code", [])
    assert (code["temperature"], code["top_p"], code["top_k"]) == (0.2, 0.9, 20)
    changed = sampling_knobs("code", ["top_k=5", "stop=[END]", "logit_bias={3: -1.5}"])
    assert (changed["top_k"], changed["stop"], changed["logit_bias"]) == (5, ["END"], {"3": -1.5})
    assert sampling_knobs("eval", [])["temperature"] == 0
    with pytest.raises(UsageError, match="'hello': not of the form key=value"):
        sampling_knobs("general", ["hello"])
