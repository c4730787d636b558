"""Pages of the web: WARC files as crawlers leave them, and the conversations that stand in pages."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any

import pytest
from curated_data import curate, source

from posttrain.data.sources.readers import Row, read_rows
from posttrain.data.sources.web.dialogues import conversations, lines_of
from posttrain.stage.errors import UsageError

FAQ = """<html><head><title>Q: no</title><style>p {}</style></head><body><nav>Q: menu A: none</nav>
<h2>Questions</h2><p><b>Q:</b> How do I <i>open</i> it?</p><p>A: Lift the lid,<br>then turn it.</p>
<p>Q: Is it safe?</p><div>A: Yes.</div><p>Phone: 123</p><script>Q: x</script></body></html>"""
TALK = "Ann: Where to?\nBo: To the sea.\nIt is near.\nAnn: And then?\nBo: Home.\nAnn: Bye.\n"


def record(kind: str, block: bytes, media: str = "application/http; msgtype=response", **fields: str) -> bytes:
    named = {"WARC-Type": kind, "WARC-Target-URI": "https://a.test/x", "Content-Type": media, **fields}
    lines = "".join(f"{name}: {value}\r\n" for name, value in named.items())
    return f"WARC/1.1\r\n{lines}Content-Length: {len(block)}\r\n\r\n".encode() + block + b"\r\n\r\n"


def answer(body: bytes, media: str = "text/html; charset=utf-8", status: str = "200 OK", **fields: str) -> bytes:
    named = {"Content-Type": media, **{name.replace("_", "-"): value for name, value in fields.items()}}
    return (
        f"HTTP/1.1 {status}\r\n".encode() + "".join(f"{k}: {v}\r\n" for k, v in named.items()).encode() + b"\r\n" + body
    )


def read(path: Path) -> list[dict[str, Any]]:
    rows = list(read_rows(path))
    assert all(isinstance(row, Row) for row in rows)
    return [row.values for row in rows if isinstance(row, Row)]


def test_pages_are_read_however_servers_packed_them(tmp_path: Path) -> None:
    text = "Käse für 3 €"
    packed = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    utf8 = text.encode()
    bodies = [
        answer(utf8),
        answer(text.encode("cp1252"), "text/html; charset=windows-1252"),
        answer(b"<meta charset='cp1252'>" + text.encode("cp1252"), "text/html"),
        answer(gzip.compress(utf8), Content_Encoding="gzip"),
        answer(packed.compress(utf8) + packed.flush(), Content_Encoding="deflate"),
        answer(utf8, Content_Encoding="gzip"),  # unpacked by the crawler, which left the header
        answer(
            b"5\r\n" + utf8[:5] + b"\r\n%x;x=y\r\n" % len(utf8[5:]) + utf8[5:] + b"\r\n0\r\n\r\n",
            Transfer_Encoding="chunked",
        ),
        answer(utf8, Transfer_Encoding="chunked"),  # likewise
    ]
    whole = b"".join(record("response", body) for body in bodies) + record("conversion", utf8, "text/plain")
    (tmp_path / "a.warc").write_bytes(record("warcinfo", b"x: y", "application/warc-fields") + whole)
    rows = read(tmp_path / "a.warc")
    assert [row["page"].partition(">")[2] or row["page"] for row in rows] == [text] * 9
    assert {(row["status"], row["url"]) for row in rows} == {(200, "https://a.test/x")}
    members = [gzip.compress(record("response", body)) for body in bodies]  # one gzip member for each, as is usual
    (tmp_path / "b.warc.gz").write_bytes(b"".join(members))
    assert read(tmp_path / "b.warc.gz") == rows[:8]


def test_what_cannot_be_read_is_a_row_with_its_reason(tmp_path: Path) -> None:
    bodies = [
        answer(b"\x89PNG", "image/png"),
        answer(b"x", Content_Encoding="br"),
        answer(b"\xff\xfe\xfa", "text/html; charset=utf-8"),
        answer(b"x\0y", "text/html"),
        answer(b"Q: a?\nA: b.", "text/plain", status="404 Not Found"),
        answer(b"Q: How?\nA: So.", "text/plain"),
        answer(b"<p>Nothing said here.</p>"),
    ]
    (tmp_path / "a.warc").write_bytes(b"".join(record("response", body) for body in bodies))
    made = curate(tmp_path, "demonstration", [{"name": "web", "path": str(tmp_path / "a.warc")}], eval_fraction=0)
    assert made.accounting["dropped"] == {
        "no_dialogue": 1,
        "page_no_answer": 1,
        "page_no_text": 1,
        "page_unclear_charset": 2,
        "page_unknown_encoding": 1,
    }
    assert [(row.prompt[0].content, row.completion[0].content) for row in made.train] == [("How?", "So.")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html>", r"a\.warc: record 0 begins with b'<html>' where WARC/1\.1 is required"),
        (record("response", answer(b"x"))[:-20], r"record 0 breaks off after 44 of 60 bytes"),
        (b"WARC/1.0\r\nContent-Length: many\r\n\r\n", "Content-Length 'many', where a number is required"),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.warc").write_bytes(content)
    with pytest.raises(UsageError, match=message):
        list(read_rows(tmp_path / "a.warc"))


def test_marked_questions_are_pairs_and_people_who_take_turns_talk() -> None:
    assert conversations(lines_of(FAQ, "text/html")) == [
        [("Q", "How do I open it?"), ("A", "Lift the lid,\nthen turn it.")],
        [("Q", "Is it safe?"), ("A", "Yes.")],
    ]
    assert conversations(lines_of(TALK, "text/plain")) == [
        [("Ann", "Where to?"), ("Bo", "To the sea.\nIt is near."), ("Ann", "And then?"), ("Bo", "Home.")]
    ]


@pytest.mark.parametrize(
    "page",
    [
        "Phone: 12\nAddress: Here 1",
        "Name: a\nSize: b\nPrice: c\nStock: d",
        "Ann: a\nBo: b\nCy: c\nAnn: d\nBo: e",
        "Ann: a\nBo: b\nAnn: c",
        "A: first\nQ: and no answer",
        "http://a.test\n12:30 noon\nnothing",
        "Ann: a\nBo: b\n" + "prose\n" * 3 + "Ann: c\nBo: d",
    ],
)
def test_what_only_looks_like_a_conversation_is_none(page: str) -> None:
    assert conversations(lines_of(page, "text/plain")) == []


def test_pages_in_other_files_are_taken_apart_too(tmp_path: Path) -> None:
    given = source(tmp_path, "mine", [{"page": FAQ, "id": 7}, {"page": TALK, "media": "text/plain"}])
    made = curate(tmp_path, "demonstration", [given], eval_fraction=0)
    assert [row.id for row in made.train[:2]] == ["mine/7/1", "mine/7/2"]
    assert [turn.role for turn in made.train[2].prompt] == ["user", "assistant", "user"]
    assert made.accounting["rows_in"] == 3
