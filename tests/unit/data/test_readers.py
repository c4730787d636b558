"""Readers: every format gives the same rows with their places, and every kind of damage is named with its place."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from posttrain.data.sources.readers import BadRow, Row, read_hub_dataset, read_rows
from posttrain.stage.errors import UsageError

ROWS = [{"question": "¿2 + 2?", "answer": "4"}, {"question": "two\nlines, with commas", "answer": '"5"'}]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    match path.name.removesuffix(".gz").rpartition(".")[2]:
        case "jsonl":
            data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        case "json":
            data = json.dumps(rows, indent=1).encode()
        case "csv":
            quoted = ['"{}"'.format('","'.join(value.replace('"', '""') for value in row.values())) for row in rows]
            data = "\n".join([",".join(rows[0]), *quoted]).encode()
        case _:
            plain = path.with_suffix(".plain")
            pq.write_table(pa.Table.from_pylist(rows), plain)
            data = plain.read_bytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


PLACES = {"jsonl": [":1", ":2"], "json": ["[0]", "[1]"], "csv": [":2", ":3"], "parquet": ["[0]", "[1]"]}


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("kind", PLACES)
def test_every_format_gives_the_same_rows(tmp_path: Path, kind: str, packed: str) -> None:
    path = tmp_path / f"rows.{kind}{packed}"
    write(path, ROWS)
    assert list(read_rows(path)) == [Row(place, row) for place, row in zip(PLACES[kind], ROWS, strict=True)]


BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize("mark", [b"", BOM])
@pytest.mark.parametrize(
    ("name", "content", "places"),
    [
        ("x.jsonl", b'{"a": "1"}\n{"a": "2"}\n', [":1", ":2"]),
        ("x.ndjson", b'{"a": "1"}\n{"a": "2"}\n', [":1", ":2"]),
        ("x.json", b'{"a": "1"}\r\n\r\n{"a": "2"}', [":1", ":3"]),
        ("x.json", b'[{"a": "1"},\n{"a": "2"}]', ["[0]", "[1]"]),
        ("x.csv", b"a\n1\n2\n", [":2", ":3"]),
        ("x.csv", b'"a"\n1\n2\n', [":2", ":3"]),
        ("x.tsv", b'a\n"1"\n2\n', [":2", ":3"]),
    ],
)
def test_a_byte_order_mark_at_the_beginning_is_no_text(
    tmp_path: Path, name: str, content: bytes, places: list[str], mark: bytes
) -> None:
    (tmp_path / name).write_bytes(mark + content)
    assert list(read_rows(tmp_path / name)) == [Row(places[0], {"a": "1"}), Row(places[1], {"a": "2"})]


def test_fields_of_tsv_are_apart_by_tabs(tmp_path: Path) -> None:
    path = tmp_path / "rows.tsv"
    path.write_text('a\tb\n1,5\t"x\ty"\n3\n')
    bad = BadRow(":3", "1 fields, but the header names 2; quote fields that hold tabs", ["3"])
    assert list(read_rows(path)) == [Row(":2", {"a": "1,5", "b": "x\ty"}), bad]


def test_lines_of_a_json_file_are_bad_rows_by_themselves(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(b'{"a": 1, "a": 2}\n{"a": }\n{"a": 3}\n')
    assert [(row.position, type(row)) for row in read_rows(path)] == [(":1", BadRow), (":2", BadRow), (":3", Row)]


def test_a_parquet_file_with_a_column_twice_is_refused_as_csv_is(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table([["1"], ["2"]], names=["a", "a"]), path)
    with pytest.raises(UsageError) as caught:
        list(read_rows(path))
    assert str(caught.value) == f"{path}: column 'a' stands twice; give each column its own name"


def test_csv_rows_are_placed_at_the_line_where_they_begin(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    write(path, [ROWS[1], ROWS[0], ROWS[0]])
    assert [row.position for row in read_rows(path)] == [":2", ":4", ":5"]


def test_a_json_object_is_one_row_and_line_separators_in_text_do_not_end_a_line(tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text('\n {"a": [1, {"b": null}]}\n')
    assert list(read_rows(tmp_path / "one.json")) == [Row("[0]", {"a": [1, {"b": None}]})]
    (tmp_path / "lines.jsonl").write_text('{"a": "x\u2028y"}\r\n\n{"a": "z"}', encoding="utf-8")
    assert list(read_rows(tmp_path / "lines.jsonl")) == [Row(":1", {"a": "x\u2028y"}), Row(":3", {"a": "z"})]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a": "b"', "not JSON (Expecting ',' delimiter at column 10); mend it"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "key 'c' stands twice; keep one"),
        (b'{"a": "x\x00"}', "NUL byte at column 9; remove it"),
        (b'{"a": "caf\xe9"}', "byte 0xe9 at column 11 is not UTF-8; save the file as UTF-8"),
        (b"\xef\xbb\xbf{}", "byte order mark; save the file as UTF-8 without BOM"),
        (b'["a"]', "a JSON array, where an object of columns is required; write {…}"),
        ('{"a": "x"}'.encode("utf-16-le"), "NUL byte at column 2; remove it"),
        ('{"a": "x"}'.encode("utf-16"), "byte 0xff at column 1 is not UTF-8; save the file as UTF-8"),
        (b"[" * 100_000, "nested too deeply; flatten it"),
    ],
)
def test_a_bad_line_leaves_its_neighbours_readable(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 0}\n' + line + b'\n{"a": 2}\n')
    first, bad, last = read_rows(path)
    assert isinstance(bad, BadRow)
    assert (bad.position, bad.reason) == (":2", reason)
    assert (first, last) == (Row(":1", {"a": 0}), Row(":3", {"a": 2}))


def test_a_line_of_a_hundred_megabytes_is_a_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with path.open("wb") as file:
        file.write(b'{"a": "')
        for _ in range(100):
            file.write(b"x" * 1_000_000)
        file.write(b'"}\n{"a": "y"}\n')
    long, after = read_rows(path)
    assert isinstance(long, Row) and len(long.values["a"]) == 100_000_000
    assert after == Row(":2", {"a": "y"})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", BOM, "{}: holds no rows; mend the path or leave the source out"),
        ("x.csv", BOM, "{}: holds no rows; mend the path or leave the source out"),
        ("x.jsonl", b"", "{}: holds no rows; mend the path or leave the source out"),
        (
            "x.txt",
            b"a",
            "{}: not a type that can be read; give one of .jsonl, .ndjson, .json, .csv, .tsv, .parquet, .warc, .wet",
        ),
        ("x.json", b'[{"a": 1},\n {"a": }]', "{}:2: not JSON (Expecting value at column 8); mend it"),
        ("x.json", b'[{"a": 1} {"a": 2}]', "{}:1: not JSON (Expecting ',' or ']' at column 11); mend it"),
        ("x.json", b'[{"a": 1}] 2', "{}:1: not JSON (Extra data at column 12); mend it"),
        ("x.json", b'[{"a": 1}', "{}:1: not JSON (Expecting ',' or ']' at column 10); mend it"),
        ("x.json", b'[{"a": 1},\n{"a": 1, "a": 2}]', "{}[1]: key 'a' stands twice; keep one"),
        ("x.json", b'[{"a":\n"\xff"}]', "{}:2: byte 0xff is not UTF-8; save the file as UTF-8"),
        ("x.csv", b"a,a\n1,2\n", "{}:1: column 'a' stands twice; give each column its own name"),
        ("x.csv", b"a,\n1,2\n", "{}:1: a column has no name; give each column its own name"),
        ("x.csv", b'a,b\n1,"2\n', "{}:2: not CSV (unexpected end of data); mend the quotes"),
        ("x.csv", b"a,b\n1,2\n1,\x00\n", "{}:3: NUL byte; remove it"),
        ("x.tsv", b"a\ta\n1\t2\n", "{}:1: column 'a' stands twice; give each column its own name"),
        ("x.json", b'{"a": 1} 2', "{}:1: not JSON (Extra data at column 10); mend it"),
        ("x.json", b'{"a": 1,\n"b": }', "{}:2: not JSON (Expecting value at column 6); mend it"),
        ("x.parquet", b"PAR1 no", "{}[0]: not readable Parquet ("),
        ("x.jsonl.gz", b'{"a": 1}\n', "{}: the gzip data break off or are damaged (Not a gzipped file"),
    ],
)
def test_a_broken_file_is_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        list(read_rows(path))
    assert str(caught.value).startswith(message.format(path))
    assert "\n" not in str(caught.value)


def test_a_cut_gzip_stream_says_how_far_it_could_be_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    lines = "".join(json.dumps({"n": n, "text": f"{n * 7919 % 10007}"}) + "\n" for n in range(5000))
    whole = gzip.compress(lines.encode())
    path.write_bytes(whole[: len(whole) // 2])
    rows = []
    with pytest.raises(UsageError, match="break off or are damaged after") as caught:
        for row in read_rows(path):
            rows.append(row)  # noqa: PERF402 - the rows before the break are wanted
    assert 0 < len(rows) < 5000
    assert f"rows.jsonl.gz:{len(rows)} (" in str(caught.value)


def test_a_csv_row_with_another_number_of_fields_is_a_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a,b\n1,2,3\n4,5\n6\n")
    assert list(read_rows(path)) == [
        BadRow(":2", "3 fields, but the header names 2; quote fields that hold commas", ["1", "2", "3"]),
        Row(":3", {"a": "4", "b": "5"}),
        BadRow(":4", "1 fields, but the header names 2; quote fields that hold commas", ["6"]),
    ]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"absent\.jsonl: no such file"):
        list(read_rows(tmp_path / "absent.jsonl"))


def test_a_folder_as_a_dataset_is_read_as_it_is_now(tmp_path: Path) -> None:
    file = tmp_path / "words" / "train.jsonl"
    file.parent.mkdir()
    read = []
    for text in ("one", "two"):
        file.write_text(json.dumps({"text": text}) + "\n")
        os.utime(file, ns=(0, 0))
        read.append([row.values for row in read_hub_dataset(str(file.parent), None, "train", None)])
    assert read == [[{"text": "one"}], [{"text": "two"}]]
