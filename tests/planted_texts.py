# ruff: noqa: E501
"""What is planted into rows: quotations, formulas, templates, personal data that is made up, and what looks like it."""

from __future__ import annotations

import random
import string
from collections.abc import Callable

from posttrain.data.steps.pii_numbers import IBAN_LENGTHS

Made = Callable[[random.Random], tuple[str, str, str]]
"""What stands before, the thing itself, and what stands after."""

TEMPLATES = [
    (
        "What is the capital of {place}, and what is it known for?",
        "The capital of {place} is {other}, known for {line}",
    ),
    (
        "A baker bakes {a} loaves of bread in one week and sells each of them for {b} cents at the market on Saturday. "
        "How many cents does the baker take in one week if all loaves of bread are sold? Think step by step.",
        "The baker bakes {a} loaves and sells each of them for {b} cents, so the baker takes {a} times {b} cents.",
    ),
    (
        "You are given a statement. Decide with care whether the statement follows from what is commonly known about the "
        "world, and answer with yes or no and nothing else. Do not explain the answer. Statement: {line} {text}",
        "{poem}",
    ),
    ("Write a short poem about the sea in the style of an old sailor who remembers his youth.", "{poem}"),
    ("Is this review positive or negative? Answer with one word. Review: {text}", "positive"),
]

_FAMOUS = [
    "To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer the slings and arrows",
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness",
    "We hold these truths to be self-evident, that all men are created equal, that they are endowed by their Creator",
    "Call me Ishmael. Some years ago, never mind how long precisely, having little or no money in my purse",
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a wife",
    "Four score and seven years ago our fathers brought forth on this continent, a new nation, conceived in Liberty",
    "All happy families are alike; each unhappy family is unhappy in its own way, and everything was in confusion",
    "Ask not what your country can do for you, ask what you can do for your country, my fellow citizens of the world",
]
QUOTES = [
    (ask.format(quote), f'As somebody wrote, "{quote}" and so on.')
    for quote in _FAMOUS
    for ask in ('Who wrote the words "{}"?', 'In which work do the words "{}" stand, and who says them to whom?')
]
_RULES = [
    ("x = (-b + sqrt(b^2 - 4 a c)) / (2 a)", "Which values of x solve the equation when a is 2, b is 7 and c is 3?"),
    ("a^2 + b^2 = c^2", "How long is the third side of a right triangle whose shorter sides are 9 and 12 metres long?"),
    ("E = m c^2", "How much energy does a mass of three grams hold, in joules, by this relation of Einstein?"),
    ("A = P (1 + r / n)^(n t)", "What is a deposit of 900 dollars worth after four years at two percent a year?"),
    ("sin(x)^2 + cos(x)^2 = 1", "What is the cosine of an angle in the first quadrant whose sine is three fifths?"),
    ("F = G m1 m2 / r^2", "By which factor does the force between two stars change when their distance doubles?"),
    ("P(A|B) = P(B|A) P(A) / P(B)", "How likely is the illness when a test of the given accuracy is positive twice?"),
]
FORMULAS = [(f"Use the formula {rule} here. {ask}", f"Remember that {rule} always holds.") for rule, ask in _RULES]


def _digits(rng: random.Random, count: int) -> str:
    return "".join(rng.choices(string.digits, k=count))


def _letters(rng: random.Random, count: int, known: str = string.ascii_letters + string.digits) -> str:
    return "".join(rng.choices(known, k=count))


def _email(rng: random.Random) -> tuple[str, str, str]:
    user = rng.choice(["{a}.{b}", "{a}{n}", "{a}_{b}", "{a}+{b}", "{a}-{b}"]).format(
        a=_letters(rng, 5, string.ascii_lowercase), b=_letters(rng, 6, string.ascii_lowercase), n=rng.randint(1, 99)
    )
    domain = f"{_letters(rng, 7, string.ascii_lowercase)}.{rng.choice(['com', 'org', 'de', 'co.uk', 'museum', 'fi'])}"
    return rng.choice(["Write to ", "mail: ", "<", "("]), f"{user}@{domain}", rng.choice([".", ",", ">", ")", " today"])


def _phone(rng: random.Random) -> tuple[str, str, str]:
    d, area = _digits, f"{rng.randint(2, 9)}{_digits(rng, 2)}"
    number = rng.choice([
        f"+1 {area} {d(rng, 3)} {d(rng, 4)}", f"({area}) {d(rng, 3)}-{d(rng, 4)}", f"{area}-{d(rng, 3)}-{d(rng, 4)}",
        f"+44 20 {d(rng, 4)} {d(rng, 4)}", f"+49 (0)30 {d(rng, 7)}", f"06 {d(rng, 2)} {d(rng, 2)} {d(rng, 2)} {d(rng, 2)}",
        f"+358 40 {d(rng, 7)}", f"0{rng.randint(20, 99)}-{d(rng, 7)}", f"+91 {rng.randint(7, 9)}{d(rng, 9)}",
        f"{area}.{d(rng, 3)}.{d(rng, 4)}", f"07{d(rng, 3)} {d(rng, 6)}",
    ])  # fmt: skip
    return (
        rng.choice(["Call ", "His phone is ", "Ring me at ", "It was "]),
        number,
        rng.choice([".", " now", ", please"]),
    )


def _with_check(number: str, good: Callable[[str], bool]) -> str:
    return next(number + digit for digit in string.digits if good(number + digit))


def _luhn(number: str) -> bool:
    total = 0
    for place, digit in enumerate(map(int, number[::-1])):
        total += digit if place % 2 == 0 else (2 * digit if digit < 5 else 2 * digit - 9)
    return total % 10 == 0


def _card_number(rng: random.Random, right: bool) -> str:
    number = _with_check(rng.choice(["4", "51", "55", "2720"]).ljust(4, "0") + _digits(rng, 11), _luhn)
    number = number if right else number[:-1] + str((int(number[-1]) + rng.randint(1, 9)) % 10)
    gap = rng.choice(["", " ", "-"])
    return gap.join(number[start : start + 4] for start in range(0, 16, 4))


def _iban(rng: random.Random, right: bool) -> str:
    country = rng.choice(["DE", "GB", "FR", "FI", "NL", "ES"])
    bank = _letters(rng, 4, string.ascii_uppercase) if country in ("GB", "NL") else _digits(rng, 4)
    account = bank + _digits(rng, IBAN_LENGTHS[country] - 8)
    value = int("".join(str(int(one, 36)) for one in f"{account}{country}00"))
    check = (96 - value % 97 + (0 if right else rng.randint(1, 96))) % 97 + 2
    iban = f"{country}{check:02}{account}"
    return " ".join(iban[start : start + 4] for start in range(0, len(iban), 4)) if rng.random() < 0.5 else iban


def _ip(rng: random.Random) -> tuple[str, str, str]:
    first = rng.choice([5, 8, 23, 45, 78, 93, 109, 151, 185, 212])
    four = ".".join(map(str, [first, *(rng.randint(0, 255) for _ in range(3))]))
    six = ":".join(["2a01", *(f"{rng.randint(4096, 65535):x}" for _ in range(7))])
    return "seen from ", rng.choice([four, four, six]), rng.choice([".", " twice", ","])


def _key(rng: random.Random) -> tuple[str, str, str]:
    return rng.choice([
        ("key ", "AKIA" + _letters(rng, 16, string.ascii_uppercase + string.digits), "."),
        ("use ", "ghp_" + _letters(rng, 36), " here"), ("OPENAI=", "sk-" + _letters(rng, 48), ""),
        ("slack ", f"xoxb-{_digits(rng, 12)}-{_letters(rng, 24)}", "."), ("api_key = '", f"{_letters(rng, 31)}7x", "'"),
        ("password: ", f"{_letters(rng, 13)}4q", " ok"), ("hub ", "hf_" + _letters(rng, 34), "."),
        ("Bearer ", f"eyJ{_letters(rng, 20)}.eyJ{_letters(rng, 30)}.{_letters(rng, 40)}", "."),
    ])  # fmt: skip


def _national(rng: random.Random) -> tuple[str, str, str]:
    nif = _digits(rng, 8)
    born = f"{rng.randint(1, 28):02}{rng.randint(1, 12):02}{_digits(rng, 2)}"
    serial = f"{rng.randint(2, 899):03}"
    return "id ", rng.choice([
        f"{rng.randint(1, 665):03}-{rng.randint(1, 99):02}-{rng.randint(1, 9999):04}",
        f"AB {_digits(rng, 2)} {_digits(rng, 2)} {_digits(rng, 2)} C",
        nif + "TRWAGMYFPDXBNJZSQVHLCKE"[int(nif) % 23],
        f"{born}-{serial}{'0123456789ABCDEFHJKLMNPRSTUVWXY'[int(born + serial) % 31]}",
    ]), " ok"  # fmt: skip


PII: dict[str, Made] = {
    "email": _email,
    "phone": _phone,
    "card": lambda rng: ("pay with ", _card_number(rng, right=True), " now"),
    "iban": lambda rng: ("to ", _iban(rng, right=True), " please"),
    "ip": _ip,
    "key": _key,
    "national_id": _national,
}


def _like_email(rng: random.Random) -> tuple[str, str, str]:
    word = _letters(rng, 6, string.ascii_lowercase)
    return rng.choice([
        ("decorate with ", f"@app.{word}", " first"), ("install ", f"@{word}/core@{rng.randint(1, 9)}.2.0", "."),
        ("icon ", f"{word}@2x.png", "."), ("log in as ", f"{word}@localhost", "."), ("meet ", f"{word} @ noon", "."),
        ("as in ", f"{word}@example.com", "."),
    ])  # fmt: skip


def _like_phone(rng: random.Random) -> tuple[str, str, str]:
    return rng.choice([
        ("on ", f"20{rng.randint(10, 29)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}", " we met"),
        ("ISBN ", f"978-3-16-{_digits(rng, 6)}-{rng.randint(0, 9)}", "."), ("about ", f"3.1415{_digits(rng, 7)}", " or so"),
        ("from ", f"19{_digits(rng, 2)}-20{rng.randint(10, 29)}", "."), ("costs ", f"${_digits(rng, 3)},{_digits(rng, 3)}.50", "."),
        ("order no. ", f"{_digits(rng, 3)}-{_digits(rng, 3)}-{_digits(rng, 4)}", " came"), ("people: ", f"{_digits(rng, 9)}", "."),
        ("at ", f"{rng.randint(1, 12):02}/{rng.randint(1, 28):02}/20{rng.randint(10, 29)} {rng.randint(10, 23)}:30", "."),
        ("commit ", _letters(rng, 40, "0123456789abcdef"), "."),
    ])  # fmt: skip


def _like_ip(rng: random.Random) -> tuple[str, str, str]:
    return rng.choice([
        ("version ", f"{rng.randint(1, 9)}.{rng.randint(0, 40)}.{rng.randint(0, 99)}.{rng.randint(0, 9)}", " is out"),
        ("bind to ", "127.0.0.1", ":80"), ("router ", f"192.168.{rng.randint(0, 9)}.1", "."), ("at ", "12:30:45", " sharp"),
        ("section ", f"{rng.randint(1, 9)}.{rng.randint(1, 9)}.{rng.randint(1, 9)}.{rng.randint(1, 9)}", "."),
        ("bad ", f"{rng.randint(256, 999)}.{rng.randint(256, 999)}.1.1", "."), ("call ", "std::move", "."),
        ("mac ", ":".join(_letters(rng, 2, "0123456789abcdef") for _ in range(6)), "."),
    ])  # fmt: skip


def _like_key(rng: random.Random) -> tuple[str, str, str]:
    hexes = "0123456789abcdef"
    return rng.choice([
        ("commit ", _letters(rng, 40, hexes), "."), ("password: ", "your_password_here", "."), ("token = ", "get_token()", "."),
        ("uuid ", "-".join(_letters(rng, n, hexes) for n in (8, 4, 4, 4, 12)), "."), ("use ", "sk-learn-contrib-lightning-library", "."),
        ("set ", "API_KEY=os.environ", " first"), ("the secret is ", "patience", "."), ("class ", "AKIAYAMA", "."),
    ])  # fmt: skip


def _like_national(rng: random.Random) -> tuple[str, str, str]:
    return "part ", rng.choice([
        f"000-{_digits(rng, 2)}-{_digits(rng, 4)}", f"666-{_digits(rng, 2)}-1234", f"{_digits(rng, 2)}-{_digits(rng, 3)}-{_digits(rng, 2)}",
        f"{_digits(rng, 3)}-00-{_digits(rng, 4)}", f"ZZ{_digits(rng, 6)}A", f"A{_digits(rng, 8)}", f"20{_digits(rng, 2)}-{_digits(rng, 2)}",
    ]), " fits"  # fmt: skip


LOOK_ALIKES: dict[str, Made] = {
    "email": _like_email,
    "phone": _like_phone,
    "card": lambda rng: ("pay with ", _card_number(rng, right=False), " now"),
    "iban": lambda rng: ("to ", _iban(rng, right=False), " please"),
    "ip": _like_ip,
    "key": _like_key,
    "national_id": _like_national,
}
