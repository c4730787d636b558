"""Check digits of cards, accounts and national identity numbers: what tells a number from one that looks like it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

_BRANDS = re.compile(
    r"4\d{12}(?:\d{3}){0,2}|5[1-5]\d{14}|2[2-7]\d{14}|3[47]\d{13}|3[0689]\d{12,13}|6\d{15,18}|35\d{14}"
)
IBAN_LENGTHS = {
    **{"AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BR": 29, "CH": 21},
    **{"CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DK": 18, "DO": 28, "EE": 20, "EG": 29, "ES": 24, "FI": 18, "FO": 18},
    **{"FR": 27, "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "HR": 21, "HU": 28, "IE": 22, "IL": 23, "IS": 26},
    **{"IT": 27, "JO": 30, "KW": 30, "KZ": 20, "LB": 28, "LI": 21, "LT": 20, "LU": 20, "LV": 21, "MC": 27, "MD": 24},
    **{"ME": 22, "MK": 19, "MT": 31, "NL": 18, "NO": 15, "PK": 24, "PL": 28, "PT": 25, "QA": 29, "RO": 24, "RS": 22},
    **{"SA": 24, "SE": 24, "SI": 19, "SK": 24, "SM": 27, "TN": 24, "TR": 26, "UA": 29, "VG": 24, "XK": 20},
}
"""Country → characters of its IBANs, as the IBAN registry has them."""


def is_card(text: str) -> bool:
    """Return whether digits are a payment card's: a brand's first digits and length, and Luhn's sum."""
    number = re.sub(r"[ -]", "", text)
    return _BRANDS.fullmatch(number) is not None and luhn(number)


def luhn(number: str) -> bool:
    """Return whether the check digit of ISO/IEC 7812 is right."""
    doubled = [int(digit) * (1 + place % 2) for place, digit in enumerate(reversed(number))]
    return sum(value // 10 + value % 10 for value in doubled) % 10 == 0


def iban_at(text: str, start: int) -> int | None:
    """Return where the IBAN that begins at ``start`` ends, or None where none does (ISO 13616: modulo 97 is 1)."""
    length = IBAN_LENGTHS.get(text[start : start + 2].upper())
    if length is None:
        return None
    found, place = "", start
    while place < len(text) and len(found) < length:
        if text[place].isascii() and text[place].isalnum():
            found += text[place]
        elif text[place] not in " -" or not found or text[place - 1] in " -":
            return None
        place += 1
    ends = place == len(text) or not text[place].isalnum()
    if len(found) < length or not ends:
        return None
    digits = "".join(str(int(character, 36)) for character in found[4:] + found[:4])
    return place if int(digits) % 97 == 1 else None


def _us(number: str) -> bool:
    area, group, serial = number[:3], number[3:5], number[5:]
    return area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"


def _spanish(number: str) -> bool:
    digits = number[:-1].translate(str.maketrans("XYZ", "012"))
    return "TRWAGMYFPDXBNJZSQVHLCKE"[int(digits) % 23] == number[-1]


def _italian(number: str) -> bool:
    odd = [1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23]
    values = [int(one) if one.isdigit() else ord(one) - ord("A") for one in number[:15]]
    total = sum(odd[value] if place % 2 == 0 else value for place, value in enumerate(values))
    return chr(ord("A") + total % 26) == number[15]


def _french(number: str) -> bool:
    digits = number[:13].replace("2A", "19").replace("2B", "18")
    return digits.isdigit() and 97 - int(digits) % 97 == int(number[13:])


def _brazilian(number: str) -> bool:
    def check(digits: str) -> int:
        rest = sum(int(one) * weight for one, weight in zip(digits, range(len(digits) + 1, 1, -1), strict=True)) % 11
        return 0 if rest < 2 else 11 - rest

    return len({*number}) > 1 and int(number[9]) == check(number[:9]) and int(number[10]) == check(number[:10])


def _finnish(number: str) -> bool:
    return "0123456789ABCDEFHJKLMNPRSTUVWXY"[int(number[:6] + number[7:10]) % 31] == number[10]


def _chinese(number: str) -> bool:
    weights = [2 ** (17 - place) % 11 for place in range(17)]
    total = sum(int(one) * weight for one, weight in zip(number[:17], weights, strict=True))
    return "10X98765432"[total % 11] == number[17]


def _any(_: str) -> bool:
    return True


_NATIONAL: tuple[tuple[re.Pattern[str], Callable[[str], bool]], ...] = (
    (re.compile(r"(?<![\w-])\d{3}-\d\d-\d{4}(?![\w-])"), _us),
    (
        re.compile(
            r"(?<!\w)(?!BG|GB|KN|NK|NT|TN|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d\d ?\d\d ?\d\d ?[A-D](?!\w)"
        ),
        _any,
    ),
    (re.compile(r"(?<!\w)(?:\d{8}|[XYZ]-?\d{7})-?[A-HJ-NP-TV-Z](?!\w)"), _spanish),
    (re.compile(r"(?<!\w)[A-Z]{6}\d\d[A-EHLMPRST]\d\d[A-Z]\d{3}[A-Z](?!\w)"), _italian),
    (re.compile(r"(?<!\w)[12] ?\d\d ?(?:0[1-9]|1[0-2]) ?(?:\d\d|2[AB]) ?\d{3} ?\d{3} ?\d\d(?!\w)"), _french),
    (re.compile(r"(?<!\w)\d{3}\.\d{3}\.\d{3}-\d\d(?!\w)"), _brazilian),
    (re.compile(r"(?<!\w)(?:0[1-9]|[12]\d|3[01])(?:0[1-9]|1[0-2])\d\d[-+A-FU-Y]\d{3}[0-9A-FHJ-NPR-Y](?!\w)"), _finnish),
    (re.compile(r"(?<!\w)[1-8]\d{5}(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dX](?!\w)"), _chinese),
)
"""US social security, UK national insurance, Spanish NIF and NIE, Italian codice fiscale, French NIR, Brazilian CPF,
Finnish henkilötunnus, Chinese resident identity number."""


def national_ids(text: str) -> Iterator[tuple[int, int]]:
    """Yield where a text has national identity numbers whose check digits, where they have some, are right."""
    for pattern, checks in _NATIONAL:
        for match in pattern.finditer(text):
            number = match[0].replace(" ", "").replace(".", "")
            if checks(number if checks is _finnish else number.replace("-", "")):
                yield match.span()
