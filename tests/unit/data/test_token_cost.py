"""What a text costs in tokens: against a tokenizer that makes a token of every byte."""

from __future__ import annotations

import csv
import json
import zipfile
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from posttrain.data.tokens.cost import costs, read_texts, sentences
from posttrain.pipeline.cli import main

TEXTS = {"eng": "One two. Three!\nFour", "hin": "एक दो। तीन।", "cmn": "一二。三四！五"}


@pytest.fixture
def bytewise(tmp_path: Path) -> Path:
    alphabet = {letter: place for place, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    (tmp_path / "bytewise").mkdir()
    tokenizer.save(str(tmp_path / "bytewise" / "tokenizer.json"))
    return tmp_path / "bytewise"


def test_sentences_end_as_their_scripts_have_it() -> None:
    assert [sentences(text) for text in TEXTS.values()] == [
        ["One two.", "Three!", "Four"],
        ["एक दो।", "तीन।"],
        ["一二。", "三四！", "五"],
    ]


def test_tokens_are_counted_by_character_byte_and_sentence_and_beside_the_reference(bytewise: Path) -> None:
    tokenizer = Tokenizer.from_file(str(bytewise / "tokenizer.json"))
    english, _, chinese = costs(tokenizer, "bytes", TEXTS, "eng", 8)
    assert (english.tokens, english.sentences, english.premium) == (8 + 6 + 4, 3, 1)
    assert (chinese.characters, chinese.bytes, chinese.tokens) == (7, 21, 9 + 9 + 3)
    assert (chinese.per_character, chinese.per_byte, chinese.per_sentence) == (3, 1, 7)
    assert chinese.premium == pytest.approx(21 / 18)
    assert (chinese.p50, chinese.longest, chinese.truncated) == (9, 9, pytest.approx(2 / 3))
    (alone,) = costs(tokenizer, "bytes", {"cmn": TEXTS["cmn"]}, "eng", None)
    assert (alone.premium, alone.truncated) == (None, None)


def test_texts_come_from_a_folder_a_zip_or_rows(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    with zipfile.ZipFile(tmp_path / "texts.zip", "w") as archive:
        for language, text in TEXTS.items():
            (folder / f"{language}.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
            archive.writestr(f"all/{language}.txt", text)
    rows = [{"language": language, "text": line} for language, text in TEXTS.items() for line in text.split("\n")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_texts(folder) == read_texts(tmp_path / "texts.zip") == read_texts(tmp_path / "rows.jsonl") == TEXTS


def test_the_command_prints_a_table_and_writes_it(
    tmp_path: Path, bytewise: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for language, text in TEXTS.items():
        (folder / f"{language}.txt").write_text(text)
    out = tmp_path / "out"
    arguments = ["tokens", str(folder), "--tokenizer", f"b={bytewise}", "--languages", "cmn", "--out", str(out)]
    assert main(arguments) == 0
    assert "1.17" in capsys.readouterr().out
    with (out / "tokens.csv").open() as file:
        assert [row["language"] for row in csv.DictReader(file)] == ["cmn", "eng"]
    assert "<svg" in (out / "tokens.svg").read_text()


@pytest.mark.parametrize(
    ("texts", "options", "told"),
    [
        ("none", [], "give a folder or .zip of LANGUAGE.txt"),
        ("empty", [], "no LANGUAGE.txt in it"),
        ("bad.jsonl", [], "bad.jsonl:2: not an object with language and text"),
        ("good", ["--languages", "enk"], "no text in 'enk'; did you mean 'eng'"),
        ("good", ["--tokenizer", "nowhere"], "nowhere: no tokenizer.json there"),
        ("latin", [], "eng.txt: byte 1 is not UTF-8"),
    ],
)
def test_what_cannot_be_read_is_one_line_that_says_what_to_give(
    tmp_path: Path,
    bytewise: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    texts: str,
    options: list[str],
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in (("good", b"One."), ("latin", b"o\xe9.")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "eng.txt").write_bytes(content)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.jsonl").write_text('{"language": "eng", "text": "One."}\n["eng"]\n')
    assert main(["tokens", texts, "--tokenizer", str(bytewise), *options]) == 2
    assert told in capsys.readouterr().err
