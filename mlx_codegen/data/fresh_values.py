"""Fresh values for pairs of request and command: what teaches a small model to copy instead of knowing by heart.

    Find *.log files in /var/log older than 30 days      find /var/log -name '*.log' -mtime +30
    Find *.csv files in /srv/maple/orders older than 12 days      find /srv/maple/orders -name '*.csv' -mtime +12

A value is replaced only where both sides have it, and on both sides alike. What carries meaning stays: utilities, options,
devices, words that the request speaks of but the command writes otherwise.
"""

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mlx_codegen.data.tasks import Words

NEVER = re.compile(r"/(dev|proc|sys|bin|usr/bin|sbin|usr/sbin)(/.*)?$|/$")
"""Devices, kernel files and folders of programs mean what they are."""
MODE_WORDS = re.compile(r"\b(chmod|perm|umask|install -m|mkdir -m)\b")
# A word in command position: at the start, after an operator or a substitution, or handed to another command.
HEAD = re.compile(
    r"(?:^|[|;&(`]|\$\(|\b(?:xargs|sudo|exec|execdir|time|nohup|env|then|do|else|watch|command)(?:\s+-\S+)*)\s*([\w./+-]+)"
)
NUMBER = re.compile(r"(?<![\w.:/-])\d{1,7}(?![\w.:]*\d)(?!\.\w)")
DIGITS = re.compile(r"\d+")
CUED_NAME = re.compile(
    r"\b(?:user|owner|group|named|called|host|hostname|server|service|package|branch|database|container|process|owned by|"
    r"belonging to|folder|directory|file|string|word|pattern|text)\s+(?=([a-z][\w-]{2,})\b)"
)
# What may not stand beside a value, before and after it
WORD_BORDERS = re.compile(r"(?<![\w/-])"), re.compile(r"(?![\w-])")
PATH_BORDERS = re.compile(r"(?<![\w./~-])"), re.compile(r"(?![\w-])")
NUMBER_BORDERS = re.compile(r"(?<![\w.])(?<!\d[:/-])"), re.compile(r"(?![\d.:])(?![A-Za-z]{2})")
URL = re.compile(r"(https?://[\w./~-]*\w)")
EMAIL = re.compile(r"([\w.+-]+@[\w-]+(?:\.[\w-]+)+)")
ADDRESS = re.compile(r"(?<![\w.])(\d{1,3}(?:\.\d{1,3}){3})(?![\w.])")
PATH = re.compile(r"(?<![\w.~/*])(/[\w+-][\w.+/-]*[\w/])")
RELATIVE_PATH = re.compile(r"(?<![\w.~/*$-])((?:[\w-]+/)+[\w.-]*\w)")
FILE_NAME = re.compile(r"(?<![\w./*$-])([\w-]+\.[a-z][a-z0-9]{0,4}(?:\.gz|\.bz2)?)(?![\w/])")
PATTERN_EXTENSION = re.compile(r"\*\.([A-Za-z][A-Za-z0-9]{0,4})\b")
EXTENSION = re.compile(r"(?<![\w)])\.([a-z][a-z0-9]{1,4})\b")
QUOTED_WORD = re.compile(r"[\"'`]([A-Za-z][\w-]{2,})[\"'`]")
# Words that follow those cues in ordinary English.
ENGLISH = frozenset(
    """
    and are associated being below but can containing contents current every exists for found from had has have having
    hierarchy id ids in inside into its itself larger list listing manager matching name named names not number older only
    or owned path paths process processes recursively size starting structure than that the their then there this through
    to tree trees type types under user users using variable was were where which while whose will with within without
    """.split()  # noqa: SIM905 (as a list it would be a page)
)


@dataclass(frozen=True)
class Value:
    """A value that both sides have, and how a fresh one is made."""

    text: str
    fresh: Callable[[random.Random], str]


def with_fresh_values(prompt: str, command: str, words: Words, rng: random.Random) -> tuple[str, str]:
    """Returns the pair with the values that both share replaced on both sides; the pair itself where they share none."""
    return with_values_replaced(prompt, command, shared_values(prompt, command, words), rng)


def with_values_replaced(prompt: str, command: str, values: list[Value], rng: random.Random) -> tuple[str, str]:
    """The same for a pair whose `shared_values` are known: finding them takes longer than all the rest."""
    replacements = {value.text: value.fresh(rng) for value in values}
    replacements |= _fresh_numbers(prompt, command, rng)
    return _replace(prompt, replacements), _replace(command, replacements)


def other_manner(prompt: str, rng: random.Random) -> str:
    """Returns a request as another person would type it: with or without a capital at the start and a stop at the end."""
    first, _, rest = prompt.partition(" ")
    if rest and first.isalpha() and first[1:].islower() and rng.random() < 0.4:
        prompt = prompt[0].swapcase() + prompt[1:]
    if rng.random() < 0.4:
        prompt = prompt[:-1] if prompt.endswith(".") else prompt if prompt[-1:] in "?!:" else f"{prompt}."
    return prompt


def shared_values(prompt: str, command: str, words: Words) -> list[Value]:
    """Finds paths, file names, extensions, addresses, names and quoted words (not numbers) that prompt and command share."""
    heads = {match[1] for match in HEAD.finditer(command)}
    found: dict[str, Value] = {}
    covered: list[tuple[int, int]] = []
    for start, stop, value in _candidates(prompt, words):
        inside_another = any(a <= start and stop <= b for a, b in covered)
        if inside_another or value.text in heads or NEVER.match(value.text):
            continue
        if value.text in found or _holds(command, value.text):
            found[value.text] = value
            covered.append((start, stop))
    return list(found.values())


def _candidates(prompt: str, words: Words) -> Iterator[tuple[int, int, Value]]:
    """What looks like a value in a request, the most telling forms first, with its place."""

    def of_type(name: str) -> Callable[[random.Random], str]:
        return lambda rng: words.fresh(name, rng)

    def found(
        pattern: re.Pattern[str], make: Callable[[str], Callable[[random.Random], str]]
    ) -> Iterator[tuple[int, int, Value]]:
        for match in pattern.finditer(prompt):
            yield match.start(1), match.end(1), Value(match[1], make(match[1]))

    yield from found(URL, lambda text: of_type("url"))
    yield from found(EMAIL, lambda text: of_type("email"))
    yield from found(ADDRESS, lambda text: of_type("address"))
    yield from found(PATH, lambda text: lambda rng: _fresh_path(text, words, rng))
    yield from found(RELATIVE_PATH, lambda text: lambda rng: _fresh_path(text, words, rng))
    yield from found(FILE_NAME, lambda text: lambda rng: _fresh_file(text, words, rng))
    yield from found(PATTERN_EXTENSION, lambda text: of_type("extension"))
    yield from found(EXTENSION, lambda text: of_type("extension"))
    yield from found(QUOTED_WORD, lambda text: of_type("word"))
    for start, stop, value in found(CUED_NAME, lambda text: of_type("word")):
        if value.text not in ENGLISH:
            yield start, stop, value


def _fresh_path(text: str, words: Words, rng: random.Random) -> str:
    """A path of the same kind: absolute or not, file or folder, with or without a slash at the end."""
    tail = "/" if text.endswith("/") else ""
    name = text.rstrip("/").rpartition("/")[2]
    is_file = "." in name[1:]
    folder = words.fresh("directory", rng)
    if not text.startswith("/"):
        folder = "/".join(folder.split("/")[-max(1, text.rstrip("/").count("/") + (0 if is_file else 1)) :])
    return f"{folder}/{_fresh_file(name, words, rng)}" if is_file else folder + tail


def _fresh_file(text: str, words: Words, rng: random.Random) -> str:
    """A file name, mostly with the same extension: archives stay archives and scripts stay scripts."""
    stem, dot, extension = text.partition(".")
    return f"{words.fresh('filename', rng)}{dot}{extension}" if stem else text


def _fresh_numbers(prompt: str, command: str, rng: random.Random) -> dict[str, str]:
    """Fresh numbers of the same size and order, if the command has all the numbers of the request (else some are derived)."""
    numbers = sorted({match[0] for match in NUMBER.finditer(prompt)}, key=int)
    numbers = [number for number in numbers if int(number) > 1]
    if not numbers or not all(_holds(command, number) for number in numbers):
        return {}
    # Numbers of the command that are near one of the request's are derived from it (older than 5 days: -mtime +4)
    others = {match[0] for match in DIGITS.finditer(command)} - set(numbers)
    if any(abs(int(other) - int(number)) == 1 for other in others if len(other) < 8 for number in numbers if int(number) > 2):
        return {}
    octal = bool(MODE_WORDS.search(command))
    for _ in range(20):
        fresh = [_fresh_number(number, octal, rng) for number in numbers]
        if len(set(fresh)) == len(fresh) and sorted(fresh, key=int) == fresh:
            return dict(zip(numbers, fresh, strict=True))
    return {}


def _fresh_number(number: str, octal: bool, rng: random.Random) -> str:
    if octal and len(number) in (3, 4) and not set(number) - set("01234567"):
        mode = rng.choice(
            ("600", "640", "644", "664", "700", "711", "744", "750", "755", "770", "775", "400", "440", "444", "555", "777")
        )
        return number[:-3] + mode
    digits = len(number.lstrip("0"))
    value = rng.randrange(max(2, 10 ** (digits - 1)), 10**digits)
    if digits > 2 and rng.random() < 0.5:
        value = value // 10 ** (digits - 1) * 10 ** (digits - 1)  # people like round numbers
    return str(value).rjust(len(number), "0")


def _places(value: str, text: str) -> Iterator[int]:
    """Where the value stands in a text by itself and not as a part of a longer word."""
    # A pattern of the value itself would be compiled for every pair, which takes longer than all the rest
    kind = NUMBER_BORDERS if value.isdigit() else PATH_BORDERS if value.startswith("/") else WORD_BORDERS
    before, after = kind
    start = text.find(value)
    while start >= 0:
        if before.match(text, start) and after.match(text, start + len(value)):
            yield start
        start = text.find(value, start + 1)


def _holds(text: str, value: str) -> bool:
    return next(_places(value, text), None) is not None


def _replace(text: str, replacements: dict[str, str]) -> str:
    """Replaces all at once, of two that begin at one place the longer, so that no fresh value is replaced again."""
    places = sorted((start, -len(old), old) for old in replacements for start in _places(old, text))
    parts, done = [], 0
    for start, _, old in places:
        if start >= done:
            parts += [text[done:start], replacements[old]]
            done = start + len(old)
    return "".join(parts) + text[done:]
