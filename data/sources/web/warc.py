"""Pages in WARC files (ISO 28500), as crawlers leave them: responses of servers, and texts that were made of them.

Records that hold no page (requests, metadata, revisits) are no rows. A page that cannot be read is one,
with the reason.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from typing import IO, Any

MOST_BYTES = 64 << 20
"""Of a page once it is unpacked; more may be a bomb."""
_CHARSET = re.compile(r"charset\s*=\s*[\"']?([\w.:-]+)", re.IGNORECASE)
_STATUS = re.compile(rb"HTTP/[\d.]+ (\d{3})")

Headers = dict[str, str]


def pages(file: IO[bytes]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the pages of a file with their numbers among its records, from 0.

    A page has a url, a date, a status, a media type and its text as ``page``; ``unread`` says why there is none.
    Raises ValueError for what is no WARC, or breaks off.
    """
    number = -1
    while line := file.readline():
        if not line.strip():
            continue
        number += 1
        if not line.startswith(b"WARC/"):
            raise ValueError(f"record {number} begins with {line[:20]!r} where WARC/1.1 is required; fetch it again")
        head = _headers(iter(file.readline, b""))
        block = _block(file, head, number)
        kind = head.get("warc-type", "")
        if kind not in ("response", "resource", "conversion"):
            continue
        answered = kind == "response" and head.get("content-type", "").startswith("application/http")
        status, own, body = _answer(block) if answered else (200, head, block)
        told = {"url": head.get("warc-target-uri", ""), "date": head.get("warc-date", ""), "status": status}
        yield number, told | _read(own, body)


def _headers(lines: Iterator[bytes]) -> Headers:
    """Return the named fields up to a blank line; a line that begins with a space goes on with the one before."""
    found: Headers = {}
    name = ""
    for line in lines:
        text = line.decode("utf-8", "replace").rstrip("\r\n")
        if not text:
            break
        if text[0] in " \t":
            found[name] = f"{found.get(name, '')} {text.strip()}"
            continue
        name, _, value = text.partition(":")
        name = name.strip().lower()
        found[name] = value.strip()
    return found


def _block(file: IO[bytes], head: Headers, number: int) -> bytes:
    length = head.get("content-length", "")
    if not length.isdecimal():
        raise ValueError(f"record {number}: Content-Length {length!r}, where a number is required; fetch it again")
    block = file.read(int(length))
    if len(block) < int(length):
        raise ValueError(f"record {number} breaks off after {len(block):,} of {int(length):,} bytes; fetch it again")
    return block


def _answer(block: bytes) -> tuple[int, Headers, bytes]:
    """Return status, headers and body of a server's answer."""
    head, _, body = block.partition(b"\r\n\r\n")
    status, *lines = head.split(b"\r\n")
    match = _STATUS.match(status)
    own = _headers(iter(lines))
    if own.get("transfer-encoding", "").lower() == "chunked":
        body = _joined(body)
    return int(match[1]) if match else 0, own, body


def _joined(body: bytes) -> bytes:
    """Return the chunks of a body as one; crawlers that joined them already left the header as it was."""
    parts: list[bytes] = []
    at = 0
    while (end := body.find(b"\r\n", at)) >= 0:
        size = body[at:end].split(b";")[0].strip()
        if re.fullmatch(rb"[0-9A-Fa-f]{1,8}", size) is None:
            return body
        if int(size, 16) == 0:
            return b"".join(parts)
        parts.append(body[end + 2 : end + 2 + int(size, 16)])
        at = end + 2 + int(size, 16) + 2
    return body


def _read(head: Headers, body: bytes) -> dict[str, Any]:
    media = head.get("content-type", "").partition(";")[0].strip().lower()
    if media not in ("text/html", "application/xhtml+xml", "text/plain"):
        return _unread(media, "no_text")
    packing = head.get("content-encoding", "identity").lower()
    if packing in ("gzip", "x-gzip", "deflate"):
        unpacked = _unpacked(body)
        if unpacked is None:
            return _unread(media, "too_large")
        body = unpacked
    elif packing not in ("", "identity"):
        return _unread(media, "unknown_encoding")
    text = _decoded(body, head.get("content-type", ""))
    return _unread(media, "unclear_charset") if text is None else {"media": media, "page": text}


def _unread(media: str, why: str) -> dict[str, Any]:
    return {"media": media, "page": "", "unread": why}


def _unpacked(body: bytes) -> bytes | None:
    """Return a body unpacked, None where it is too large; what is not packed, in spite of its header, as it is."""
    for bits in (zlib.MAX_WBITS | 32, -zlib.MAX_WBITS):
        unpacking = zlib.decompressobj(bits)
        try:
            made = unpacking.decompress(body, MOST_BYTES)
        except zlib.error:
            continue
        return None if unpacking.unconsumed_tail else made
    return body


def _decoded(body: bytes, content_type: str) -> str | None:
    """Return a text by the charset that its header or its own beginning declares, or as UTF-8; None if neither fits."""
    declared = _CHARSET.search(content_type) or _CHARSET.search(body[:1024].decode("ascii", "replace"))
    for charset in (declared[1] if declared else "utf-8", "utf-8"):
        try:
            text = body.decode(charset)
        except (UnicodeDecodeError, LookupError):
            continue
        return None if "\0" in text else text.removeprefix("\ufeff")
    return None
