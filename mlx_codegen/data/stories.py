"""The bundled English: short stories and plain explanations, written by seed from the patterns in `data/english`.

A plot first draws its cast (`let`: who and what the text is about, the same from the first sentence to the last) and
then writes one alternative of every step. Patterns hold these holes:

- `{place}`: a name of the cast, or a fresh draw from a word list; `{a place}` puts a or an in front of it;
- `{hero.they}`: a form of somebody in the cast: they, them, their;
- `{^place}`, `{^hero.they}`: the same with a capital letter.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mlx_codegen.errors import UserError

WORDS_FILE = "words.yaml"
PATIENCE = 1000
"""Drafts in a row that may repeat earlier documents before the patterns count as exhausted."""

_HOLE = re.compile(r"\{(\^?)(a )?([a-z_]+)(?:\.(they|them|their))?\}")
_ANY_BRACE = re.compile(r"[{}]")

Model = TypeVar("Model", bound=BaseModel)


class Strict(BaseModel):
    """A checked part of a YAML file; a key that nobody knows is a mistake."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Group(Strict):
    """Names that take the same pronouns."""

    they: str
    them: str
    their: str
    names: list[str] = Field(min_length=1)


class WordsFile(Strict):
    """`words.yaml`: people come in groups by pronoun; a list's items may hold holes of lists above it."""

    people: dict[str, list[Group]]
    lists: dict[str, list[str]]


class Plot(Strict):
    """One kind of text: its cast and its steps, each step a sentence or a choice of several."""

    let: dict[str, str] = {}
    steps: list[str | list[str]] = Field(min_length=1)


class PlotsFile(Strict):
    """Any other file of the folder: plots, and how often this file is chosen compared with the others."""

    share: int = Field(default=1, ge=1)
    plots: dict[str, Plot] = Field(min_length=1)


@dataclass(frozen=True)
class Character:
    """Somebody in a story: a name, and the pronouns that go with it."""

    name: str
    group: Group

    def form(self, form: str | None) -> str:
        """Returns the name, or the pronoun called `form`."""
        return self.name if form is None else str(getattr(self.group, form))


def story_documents(folder: Path, count: int, seed: int) -> Iterator[str]:
    """Yields `count` different documents, the same for the same seed and files; UserError for a bad file."""
    words, files = _load(folder)
    shares = [file for file in files for _ in range(file.share)]
    plots = {id(file): list(file.plots.values()) for file in files}
    rng = random.Random(seed)
    seen: set[str] = set()
    repeats = 0
    while len(seen) < count:
        document = _write(rng.choice(plots[id(rng.choice(shares))]), words, rng)
        if document in seen:
            repeats += 1
            if repeats == PATIENCE:
                raise UserError(f"{folder}: the patterns give no more than about {len(seen)} different documents")
            continue
        repeats = 0
        seen.add(document)
        yield document


def _write(plot: Plot, words: WordsFile, rng: random.Random) -> str:
    """Writes one text: the cast first, then every step."""
    cast: dict[str, str | Character] = {}
    for name, source in plot.let.items():
        cast[name] = _draw_another(source, words, cast, rng)
    steps = (step if isinstance(step, str) else rng.choice(step) for step in plot.steps)
    sentences = (_fill(step, words, cast, rng) for step in steps)
    # An empty alternative leaves its step out
    return " ".join(sentence for sentence in sentences if sentence) + "\n"


def _draw_another(source: str, words: WordsFile, cast: dict[str, str | Character], rng: random.Random) -> str | Character:
    """Draws from a list or from the people, if possible something that the cast does not have yet."""
    for _ in range(20):
        if source in words.people:
            # By name and not by group, so that every name is as likely as the next
            everyone = [Character(name, group) for group in words.people[source] for name in group.names]
            drawn: str | Character = rng.choice(everyone)
        else:
            drawn = _fill(rng.choice(words.lists[source]), words, {}, rng)
        if drawn not in cast.values():
            break
    return drawn


def _fill(pattern: str, words: WordsFile, cast: dict[str, str | Character], rng: random.Random) -> str:
    """Fills the holes of a pattern from the cast and the word lists."""

    def fill(hole: re.Match[str]) -> str:
        capital, article, name, form = hole.groups()
        if name in cast:
            member = cast[name]
            text = member.form(form) if isinstance(member, Character) else member
        else:
            # Without the cast: inside a list, {place} is any place and not the one of this story
            text = _fill(rng.choice(words.lists[name]), words, {}, rng)
        if article:
            text = f"{'an' if text[0].lower() in 'aeiou' else 'a'} {text}"
        return text[0].upper() + text[1:] if capital else text

    return _HOLE.sub(fill, pattern)


def _load(folder: Path) -> tuple[WordsFile, list[PlotsFile]]:
    """Reads and checks the folder's files, in the order of their names."""
    words_path = folder / WORDS_FILE
    words = _parse(words_path, WordsFile)
    above: set[str] = set()
    for name, items in words.lists.items():
        if not items or name in words.people:
            raise UserError(f"{words_path}: lists.{name}: is empty, or is also the name of a group of people")
        for item in items:
            # Only lists above it: then no list can contain itself
            _check(item, above, set(), f"{words_path}: lists.{name}")
        above.add(name)
    files = []
    for path in sorted(folder.glob("*.yaml")):
        if path.name != WORDS_FILE:
            files.append(_parse(path, PlotsFile))
            _check_plots(path, files[-1], words)
    if not files:
        raise UserError(f"{folder}: no plots here: expected a YAML file beside {WORDS_FILE}")
    return words, files


def _check_plots(path: Path, file: PlotsFile, words: WordsFile) -> None:
    """Every name in a plot is known, and everybody in the cast appears."""
    for name, plot in file.plots.items():
        key = f"{path}: plots.{name}"
        people = {member for member, source in plot.let.items() if source in words.people}
        for member, source in plot.let.items():
            if source not in words.people and source not in words.lists:
                raise UserError(f"{key}.let.{member}: {WORDS_FILE} has no {source}")
        text = " ".join(step if isinstance(step, str) else " ".join(step) for step in plot.steps)
        _check(text, {*words.lists, *plot.let}, people, f"{key}.steps")
        if unused := sorted(plot.let.keys() - {hole[3] for hole in _HOLE.finditer(text)}):
            raise UserError(f"{key}.let.{unused[0]}: no step uses it")


def _check(pattern: str, known: set[str], people: set[str], key: str) -> None:
    """Raises UserError for a hole that nothing can fill."""
    for hole in _HOLE.finditer(pattern):
        name, form = hole[3], hole[4]
        if name not in known:
            raise UserError(f"{key}: {hole[0]} is neither in the cast nor a word list known here")
        if form and name not in people:
            raise UserError(f"{key}: {hole[0]} asks for a pronoun, but {name} is not a person")
    if _ANY_BRACE.search(_HOLE.sub("", pattern)):
        raise UserError(f"{key}: a brace is left over in {pattern[:60]!r}")


def _parse(path: Path, model: type[Model]) -> Model:
    """Reads a YAML file into a checked model; UserError names the file and the key in one line."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UserError(f"{path}: {key}: {first['msg']}") from error
