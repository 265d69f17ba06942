"""The bundled English: short stories and plain explanations, written by seed from the patterns in `data/english`.

A plot first draws its cast (`let`: who and what the text is about, the same from the first sentence to the last) and
then writes one alternative of every step. What is drawn is a row of one or several fields: somebody with pronouns, a word
of a list, or a row of a table, whose fields belong together (a craft, its tool and its product). Patterns hold these holes:

- `{place}`: the name of somebody or something in the cast, or a fresh draw from a word list; `{a place}` puts a or an
  in front of it;
- `{hero.they}`, `{craft.tool}`: another field of a member of the cast;
- `{^place}`, `{^hero.they}`: the same with a capital letter.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, field_validator

from mlx_codegen.data.yaml_file import Strict, read_yaml
from mlx_codegen.errors import UserError

WORDS_FILE = "words.yaml"
PATIENCE = 1000
"""Drafts in a row that may repeat earlier documents before the patterns count as exhausted."""
LEFT_OUT = "-"
"""The line of a step, written as text, that leaves the step out."""
NEW_LINE = "¶"
"""A sentence that begins with this sign begins a new line."""

_HOLE = re.compile(r"\{(\^?)(a )?([a-z_]+)(?:\.([a-z_]+))?\}")
_ANY_BRACE = re.compile(r"[{}]")
_AN = re.compile(r"hour|honest|heir|(?!eu|ewe|one\b|once\b|uni[^mn]|us[eu]|ukulele)[aeiou]", re.IGNORECASE)
"""The beginning of a word that takes an: a vowel as it is heard."""

Row = dict[str, str]
"""Something that can be drawn: its fields by name; the field `name` stands for the whole."""
Vocabulary = dict[str, list[Row]]
"""What there is to draw from: groups of people, word lists and tables."""


class Group(Strict):
    """Names that take the same pronouns."""

    they: str
    them: str
    their: str
    names: list[str] = Field(min_length=1)


class Words(Strict):
    """Word lists, whose items may hold holes of lists above them, and tables.

    A table is a text: a line with the names of the fields, and a line for each row, divided by `|`.
    """

    lists: dict[str, list[str]] = Field(default_factory=dict)
    tables: dict[str, str] = Field(default_factory=dict)


class WordsFile(Words):
    """`words.yaml`: what all files may draw from; people come in groups by pronoun."""

    people: dict[str, list[Group]]


class Plot(Strict):
    """One kind of text: its cast and its steps, each step a sentence or a choice of several.

    Steps may also be written as one text: a line is an alternative, and an empty line begins the next step.
    """

    let: dict[str, str] = Field(default_factory=dict)
    steps: list[str | list[str]] = Field(min_length=1)

    @field_validator("steps", mode="before")
    @classmethod
    def _from_text(cls, steps: object) -> object:
        if not isinstance(steps, str):
            return steps
        return [["" if line == LEFT_OUT else line for line in step.split("\n")] for step in steps.strip().split("\n\n")]


class PlotsFile(Words):
    """Any other file of the folder: plots, words of their own, and how often it is chosen compared with the other files."""

    share: int = Field(default=1, ge=1)
    plots: dict[str, Plot] = Field(min_length=1)


@dataclass(frozen=True)
class Chapter:
    """A file that is ready for use: its plots and all that they may draw from."""

    share: int
    plots: list[Plot]
    vocabulary: Vocabulary


def story_documents(folder: Path, count: int, seed: int) -> Iterator[str]:
    """Yields `count` different documents, the same for the same seed and files; UserError for a bad file."""
    chapters = [chapter for chapter in _load(folder) for _ in range(chapter.share)]
    rng = random.Random(seed)
    seen: set[str] = set()
    repeats = 0
    while len(seen) < count:
        chapter = rng.choice(chapters)
        document = _write(rng.choice(chapter.plots), chapter.vocabulary, rng)
        if document in seen:
            repeats += 1
            if repeats == PATIENCE:
                raise UserError(f"{folder}: the patterns give no more than about {len(seen)} different documents")
            continue
        repeats = 0
        seen.add(document)
        yield document


def _write(plot: Plot, words: Vocabulary, rng: random.Random) -> str:
    """Writes one text: the cast first, then every step."""
    cast: dict[str, Row] = {}
    for name, source in plot.let.items():
        cast[name] = _draw_another(words[source], words, cast, rng)
    steps = (step if isinstance(step, str) else rng.choice(step) for step in plot.steps)
    sentences = (_fill(step, words, cast, rng) for step in steps)
    # An empty alternative leaves its step out
    text = " ".join(sentence for sentence in sentences if sentence)
    return text.replace(f" {NEW_LINE} ", "\n") + "\n"


def _draw_another(rows: list[Row], words: Vocabulary, cast: dict[str, Row], rng: random.Random) -> Row:
    """Draws a row, if possible one that the cast does not have yet."""
    for _ in range(20):
        drawn = _draw(rows, words, rng)
        if drawn not in cast.values():
            break
    return drawn


def _draw(rows: list[Row], words: Vocabulary, rng: random.Random) -> Row:
    """Draws a row and fills its holes, without a cast: inside a list, {place} is any place and not the one of this story."""
    return {field: _fill(text, words, {}, rng) for field, text in rng.choice(rows).items()}


def _fill(pattern: str, words: Vocabulary, cast: dict[str, Row], rng: random.Random) -> str:
    """Fills the holes of a pattern from the cast and the word lists."""

    def fill(hole: re.Match[str]) -> str:
        capital, article, name, field = hole.groups()
        row = cast[name] if name in cast else _draw(words[name], words, rng)
        text = row[field or "name"]
        if article:
            text = f"{'an' if _AN.match(text) else 'a'} {text}"
        return text[0].upper() + text[1:] if capital else text

    return _HOLE.sub(fill, pattern) if "{" in pattern else pattern


def _load(folder: Path) -> list[Chapter]:
    """Reads and checks the folder's files, in the order of their names."""
    words_path = folder / WORDS_FILE
    words = read_yaml(words_path, WordsFile)
    common: Vocabulary = {}
    for source, groups in words.people.items():
        # By name and not by group, so that every name is as likely as the next
        common[source] = [{"name": name, **group.model_dump(exclude={"names"})} for group in groups for name in group.names]
    common = _with_words(words_path, words, common)
    chapters = []
    for path in sorted(folder.glob("*.yaml")):
        if path.name != WORDS_FILE:
            file = read_yaml(path, PlotsFile)
            vocabulary = _with_words(path, file, common)
            _check_plots(path, file, vocabulary)
            chapters.append(Chapter(file.share, list(file.plots.values()), vocabulary))
    if not chapters:
        raise UserError(f"{folder}: no plots here: expected a YAML file beside {WORDS_FILE}")
    return chapters


def _with_words(path: Path, words: Words, known: Vocabulary) -> Vocabulary:
    """Returns what is known together with a file's lists and tables."""
    vocabulary = dict(known)
    for name, items in words.lists.items():
        _add(f"{path}: lists.{name}", name, [{"name": item} for item in items], vocabulary)
    for name, table in words.tables.items():
        key = f"{path}: tables.{name}"
        header, *lines = [[cell.strip() for cell in line.split("|")] for line in table.strip().split("\n")]
        for cells in lines:
            if len(cells) != len(header) or not all(cells):
                raise UserError(f"{key}: expected {len(header)} filled fields in {' | '.join(cells)[:60]!r}")
        _add(key, name, [dict(zip(header, cells, strict=True)) for cells in lines], vocabulary)
    return vocabulary


def _add(key: str, name: str, rows: list[Row], vocabulary: Vocabulary) -> None:
    """Adds a list or table whose holes are names of lists above it: then nothing can contain itself."""
    if not rows or name in vocabulary:
        raise UserError(f"{key}: is empty, or the name is taken by another list, table or group of people")
    for row in rows:
        for text in row.values():
            _check(text, vocabulary, key)
    vocabulary[name] = rows


def _check_plots(path: Path, file: PlotsFile, vocabulary: Vocabulary) -> None:
    """Every name in a plot is known, and everybody in the cast appears."""
    for name, plot in file.plots.items():
        key = f"{path}: plots.{name}"
        for member, source in plot.let.items():
            if source not in vocabulary:
                raise UserError(f"{key}.let.{member}: {WORDS_FILE} has no {source}")
        text = " ".join(step if isinstance(step, str) else " ".join(step) for step in plot.steps)
        cast = {member: vocabulary[source] for member, source in plot.let.items()}
        _check(text, {**vocabulary, **cast}, f"{key}.steps")
        if unused := sorted(plot.let.keys() - {hole[3] for hole in _HOLE.finditer(text)}):
            raise UserError(f"{key}.let.{unused[0]}: no step uses it")


def _check(pattern: str, known: Vocabulary, key: str) -> None:
    """Raises UserError for a hole that nothing can fill."""
    for hole in _HOLE.finditer(pattern):
        name, field = hole[3], hole[4] or "name"
        if name not in known:
            raise UserError(f"{key}: {hole[0]} is neither in the cast nor a word list known here")
        if field not in known[name][0]:
            raise UserError(f"{key}: {hole[0]} asks for {field}, which {name} does not have")
    if _ANY_BRACE.search(_HOLE.sub("", pattern)):
        raise UserError(f"{key}: a brace is left over in {pattern[:60]!r}")
