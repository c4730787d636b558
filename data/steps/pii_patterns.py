"""Where a text has personal data and secrets, by type. What has no form of its own, such as names, is not found."""

from __future__ import annotations

import ipaddress
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator

from posttrain.data.config.steps import PiiType
from posttrain.data.steps.pii_numbers import iban_at, is_card, national_ids

Span = tuple[int, int]

_KEYS = re.compile(
    r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----.*?-----END (?:[A-Z]+ )*PRIVATE KEY-----"
    r"|(?<!\w)(?:AKIA|ASIA)[0-9A-Z]{16}(?!\w)"
    r"|(?<!\w)gh[pousr]_[A-Za-z0-9]{36,}|(?<!\w)github_pat_\w{22,}|(?<!\w)glpat-[\w-]{20,}"
    r"|(?<!\w)xox[abeoprs]-[0-9A-Za-z-]{10,}|(?<!\w)AIza[\w-]{35}|(?<!\w)hf_[A-Za-z0-9]{30,}"
    r"|(?<!\w)(?:sk|rk|pk)_(?:live|test)_[0-9a-zA-Z]{16,}|(?<!\w)npm_[A-Za-z0-9]{36}"
    r"|(?<![\w-])eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,}",
    re.DOTALL,
)
_SK = re.compile(r"(?<![\w-])sk-[A-Za-z0-9_-]{20,}")
_ASSIGNED = re.compile(
    r"(?:api[_ -]?key|secret(?:[_ -]?(?:access[_ -]?)?key)?|(?:access|auth|bearer)?[_ -]?token|passw(?:or)?d|pwd)"
    r"[\"']?\s*(?::|=|is)\s*[\"']?([^\s\"',;<>(){}]{10,})",
    re.IGNORECASE,
)
_SECRET_BITS = 3.0
"""Bits of entropy for each character from which on what is assigned to a key or password is taken for one."""

_EMAIL = re.compile(r"(?<![\w.%+'-])[\w%+'-][\w.%+'-]*@(?:[^\W_](?:[\w-]*[^\W_])?\.)+[^\W\d_]{2,24}(?![\w@])")
_NO_ONES = re.compile(
    r"(?:@|\.)(?:example\.(?:com|org|net)|example|test|invalid|localhost|local|png|jpe?g|gif|svg|webp|css|json|html)$",
    re.IGNORECASE,
)
_CARD = re.compile(r"(?<![\w.-])\d(?:[ -]?\d){11,18}(?![\w]|[.-]\d)")
_IBAN = re.compile(r"(?<!\w)[A-Za-z]{2}\d\d(?=[ -]?\w)")
_ACCOUNT = re.compile(r"(?<!\w)[A-Z]{2}\d\d(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)")
"""What has the form of an IBAN: where it is none, its digits are nothing else either."""
_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)")
_IPV6 = re.compile(r"(?<![\w:])(?:[0-9A-Fa-f]{1,4}:){2,7}(?::?[0-9A-Fa-f]{1,4}){1,6}(?![\w:])")
_VERSION = re.compile(r"(?:\bv|version|release|build|firmware|section|chapter|clause|§|==|>=|<=|~=)\s*$", re.IGNORECASE)

_PHONE = re.compile(
    r"(?<![\w/+=#$€£-])(?<!\d[., -])(?:"
    r"(?:\+[1-9]\d{0,2}[ .()/-]{0,3}|00[1-9]\d{0,2}[ .()/-]{1,3})\d(?:[ .()/-]{0,3}\d){5,12}"
    r"|\(\d{2,5}\)[ .-]?\d{2,4}(?:[ .-]?\d{2,4}){1,3}"
    r"|(?:1[ .-])?\d{3}[-. ]\d{3}[-. ]\d{4}"
    r"|0\d{1,4}[ /-]\d{2,4}(?:[ -]?\d{2,4}){1,4}|0\d{1,4}[ /-]\d{6,8}"
    r")(?: ?(?:x|ext\.? ?)\d{1,6})?(?![\w%]|[.,]\d|-\d)"
)
_NEAR_PHONE = re.compile(
    r"\b(?:phone|tel|call|mobile|cell|fax|whatsapp|dial|text|ring|sms|contact|reach|answer(?:ing)?|telephone|handy"
    r"|téléphone|móvil|my number(?: is)?)\b(?:[^\d\n+]{0,24})(\+?\d(?:[ .()/-]{0,2}\d){6,14})(?![\w%]|[.,]\d)",
    re.IGNORECASE,
)
_KIND_OF_PHONE = re.compile(
    r"(?<![\w=<>*$€£/])(?<!\d[.,])(\+?\(?\d(?:[ .()/-]{0,2}\d){5,13})"
    r"(?= ?-? ?\(?(?:fax|mobile|office|phone|cell|tel)\b(?! phones))",
    re.IGNORECASE,
)
_OTHERS_NUMBER = re.compile(
    r"(?:isbn(?:-1[03])?|issn|doi|order|invoice|serial|model|part|version|arxiv|ticket|case|tracking|sku|account|id"
    r"|reference|ref)\W{0,3}(?:no|number|nr|code|id)?\W{0,4}(?:is )?$",
    re.IGNORECASE,
)
_DATE = re.compile(
    r"(?:(?:19|20)\d\d(?P<one>[-./])[01]?\d(?P=one)[0-3]?\d|[0-3]?\d(?P<two>[-./ ])[0-3]?\d(?P=two)(?:19|20)\d\d"
    r"|(?:19|20)\d\d ?- ?(?:19|20)\d\d|[0-2]\d[0-5]\d ?- ?[0-2]\d[0-5]\d)(?!\d|[-./]\d)"
)


def _keys(text: str) -> Iterator[Span]:
    for match in _KEYS.finditer(text):
        yield match.span()
    for match in _SK.finditer(text):
        if any(one.isdigit() for one in match[0]) and _bits(match[0][3:]) >= _SECRET_BITS:
            yield match.span()
    for match in _ASSIGNED.finditer(text):
        value = match[1].rstrip(".")
        kinds = [any(one.isdigit() for one in value), any(one.isalpha() for one in value)]
        if all(kinds) and _bits(value) >= _SECRET_BITS:
            yield match.start(1), match.start(1) + len(value)


def _bits(text: str) -> float:
    return -sum(n / len(text) * math.log2(n / len(text)) for n in Counter(text).values())


def _emails(text: str) -> Iterator[Span]:
    for match in _EMAIL.finditer(text):
        if _NO_ONES.search(match[0]) is None:
            yield match.span()


def _cards(text: str) -> Iterator[Span]:
    return (match.span() for match in _CARD.finditer(text) if is_card(match[0]))


def _ibans(text: str) -> Iterator[Span]:
    for match in _IBAN.finditer(text):
        if (end := iban_at(text, match.start())) is not None:
            yield match.start(), end


def _addresses(text: str) -> Iterator[Span]:
    for match in (*_IPV4.finditer(text), *_IPV6.finditer(text)):
        try:
            address = ipaddress.ip_address(match[0])
        except ValueError:
            continue
        if address.version == 6 and not (any(one.isdigit() for one in match[0]) and match[0].count(":") > 2):
            continue
        nobody = address.is_private or address.is_loopback or address.is_multicast or address.is_unspecified
        if not nobody and _VERSION.search(text, max(0, match.start() - 12), match.start()) is None:
            yield match.span()


def _phones(text: str) -> Iterator[Span]:
    patterns = ((_PHONE, 0, 7), (_NEAR_PHONE, 1, 6), (_KIND_OF_PHONE, 1, 6))
    found = ((match.span(group), least) for pattern, group, least in patterns for match in pattern.finditer(text))
    for (start, end), least in found:
        digits = sum(one.isdigit() for one in text[start:end])
        named = _OTHERS_NUMBER.search(text, max(0, start - 30), start)
        if least <= digits <= 20 and named is None and _DATE.match(text, start) is None:
            yield start, end


FINDERS: dict[PiiType, Callable[[str], Iterator[Span]]] = {
    "key": _keys,
    "email": _emails,
    "card": _cards,
    "iban": _ibans,
    "national_id": national_ids,
    "ip": _addresses,
    "phone": _phones,
}
"""What finds each type; of two that overlap, the type that stands first here has it."""

_DIGIT = re.compile(r"\d")
_DIGITS = re.compile(r"\d(?:[ .()/:A-Za-z-]{0,3}\d){4}")
_KEY_HINTS = (
    "key",
    "secret",
    "token",
    "passw",
    "pwd",
    "github_",
    "ghp_",
    "gho_",
    "ghu_",
    "ghs_",
    "ghr_",
    "glpat",
    "xox",
    "hf_",
    "npm_",
    "k_",
    "sk-",
    "eyj",
    "akia",
    "asia",
    "aiza",
)
_BY_DIGITS = frozenset({"card", "iban", "national_id", "phone"})


def _possible(text: str) -> frozenset[str]:
    """Return the types that a text may have, by what is quick to see."""
    lowered = text.lower()
    found = {"email"} if "@" in text else set()
    if any(hint in lowered for hint in _KEY_HINTS):
        found.add("key")
    if _DIGIT.search(text) is not None:
        found.add("ip")
        if _DIGITS.search(text) is not None:
            found |= _BY_DIGITS
    return frozenset(found)


def find(text: str, types: frozenset[PiiType]) -> list[tuple[int, int, PiiType]]:
    """Return the spans of each of ``types`` in a text, in order, none of which overlap."""
    possible = types & _possible(text)
    found: list[tuple[int, int, PiiType]] = []
    accounts = [match.span() for match in _ACCOUNT.finditer(text)] if possible & _BY_DIGITS else []
    for name, finder in FINDERS.items():
        if name in possible:
            for start, end in finder(text):
                within = name in ("card", "phone") and any(begun <= start < ended for begun, ended in accounts)
                if not within and all(end <= begun or start >= ended for begun, ended, _ in found):
                    found.append((start, end, name))
    return sorted(found)
