"""The bundled bash tasks: YAML files of prompts and a script template, rendered into training documents by seed.

`data/README.md` describes the files. Three rules tie a script to its prompt:

- a slot that the chosen prompt names has the same fresh value in both;
- a slot that it does not name becomes the slot's `default` in the script, usually an argument: `${1:?directory}`;
- a variant that some prompts mention keeps its first value when the chosen prompt does not mention it,
  so that a script never does what nobody asked for. Variants that no prompt mentions are style and vary freely.

The split into train, validation and test is part of the data: `split.yaml` names whole tasks that are held out (unseen
tasks); of the others, the values that a prompt names decide (seen tasks, unseen values), and each may have
`unseen_prompts`, which only the test part asks (seen tasks, unseen wordings).
"""

import hashlib
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, StrictUndefined, Template, TemplateError, meta
from pydantic import Field, field_validator

from mlx_codegen.data.yaml_file import Strict, read_yaml
from mlx_codegen.errors import UserError

SHEBANG = "#!/bin/bash\n"
WORDS_FILE = "slots.yaml"
SPLIT_FILE = "split.yaml"
HELD_OUT_VALUES = 0.05
"""Share of the sets of values that validation has for itself; the test part has as many."""
BUILT_IN = frozenset({"lead", "given"})
"""Names that every template may use: a way to open a prompt, and the set of slots that the prompt names."""

# Jinja's own comment mark `{#` is bash's `${#name}`, the length of a variable; these marks mean nothing in bash.
_TEMPLATES = Environment(
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    comment_start_string="<##",
    comment_end_string="##>",
)
# Jinja's other functions (namespace, dict, ...) would hide slots of these names
_TEMPLATES.globals = {"range": range}
_MARKS = ("{{", "{%", _TEMPLATES.comment_start_string)
_NAME = re.compile(r"\{\{ *([a-z_]+) *\}\}")
_HOLE = re.compile(r"\{([a-z_]+|\d+-\d+)\}")

Variant = bool | int | str
Kind = Literal["script", "command"]
Part = Literal["train", "validation", "test"]


class Words(Strict):
    """The generators of fresh values: each type is a list of patterns whose `{holes}` name other types or a range."""

    leads: dict[Kind, list[str]]
    types: dict[str, list[str]]

    @field_validator("types")
    @classmethod
    def _holes_are_known(cls, types: dict[str, list[str]]) -> dict[str, list[str]]:
        above: set[str] = set()
        for name, patterns in types.items():
            if not patterns:
                raise ValueError(f"type {name} has no patterns")
            for hole in _HOLE.findall(" ".join(patterns)):
                # Only types above it: then no type can contain itself
                if hole[0].isalpha() and hole not in above:
                    raise ValueError(f"type {name} refers to {hole}, which is no type above it")
                if hole[0].isdigit() and int(hole.split("-")[0]) > int(hole.split("-")[1]):
                    raise ValueError(f"type {name} has a range that ends before it begins: {hole}")
            above.add(name)
        return types

    def fresh(self, type_name: str, rng: random.Random) -> str:
        """Returns a plausible value of this type."""

        def fill(hole: re.Match[str]) -> str:
            if hole[1][0].isdigit():
                low, high = hole[1].split("-")
                return str(rng.randrange(int(low), int(high) + 1))
            return self.fresh(hole[1], rng)

        return _HOLE.sub(fill, rng.choice(self.types[type_name]))


class Slot(Strict):
    """A value that varies, and what the script says when the prompt does not name it."""

    type: str
    default: str | None = None


class TaskFile(Strict):
    """The keys of one task's YAML file."""

    kind: Kind = "script"
    prompts: list[str] = Field(min_length=1)
    unseen_prompts: list[str] = Field(default_factory=list)
    slots: dict[str, Slot] = Field(default_factory=dict)
    variants: dict[str, list[Variant]] = Field(default_factory=dict)
    script: str
    setup: str = ""
    check: str = ""

    @field_validator("slots", mode="before")
    @classmethod
    def _short_slots(cls, slots: object) -> object:
        """Reads `source: directory` as `source: {type: directory}`."""
        if not isinstance(slots, dict):
            return slots
        return {name: {"type": slot} if isinstance(slot, str) else slot for name, slot in slots.items()}

    @field_validator("variants", mode="before")
    @classmethod
    def _short_variants(cls, variants: object) -> object:
        """Reads a variant without values as off or on."""
        if not isinstance(variants, dict):
            return variants
        return {name: [False, True] if values is None else values for name, values in variants.items()}


class SplitFile(Strict):
    """`split.yaml`: the tasks that training never sees, not even with other values."""

    validation: list[str] = Field(default_factory=list)
    test: list[str] = Field(default_factory=list)


@dataclass(frozen=True)
class Text:
    """A template and the names it uses. `plain`: it holds names and nothing else of Jinja's, as most prompts do."""

    source: str
    names: frozenset[str]
    plain: bool

    def render(self, values: dict[str, Any]) -> str:
        """The text with these values."""
        if self.plain:
            return _NAME.sub(lambda match: str(values[match[1]]), self.source)
        # What Template.render does, without its copy of the globals, which takes longer than the rest
        context = self._template.new_context(_TEMPLATES.globals | values, shared=True)
        return "".join(self._template.root_render_func(context))

    @cached_property
    def _template(self) -> Template:
        """Compiled at the first use: compiling takes longer than all the rest of loading."""
        return _TEMPLATES.from_string(self.source)


@cache
def _text(source: str) -> Text:
    """Reads a template, once for every source; raises jinja2.TemplateError when it is none."""
    if not any(mark in _NAME.sub("", source) for mark in _MARKS):  # Jinja would take longer to read it than we to use it
        return Text(source, frozenset(_NAME.findall(source)), plain=True)
    return Text(source, frozenset(meta.find_undeclared_variables(_TEMPLATES.parse(source))), plain=False)


@dataclass(frozen=True)
class Task:
    """One task: its file, where it was found, and the words to fill it with."""

    name: str
    category: str
    file: TaskFile
    words: Words
    held_out: Part | None = None
    """The part that has this task for itself, if one does."""

    @cached_property
    def prompts(self) -> list[Text]:
        """The prompts, in the file's order."""
        return [_text(prompt) for prompt in self.file.prompts]

    @cached_property
    def unseen_prompts(self) -> list[Text]:
        """The wordings that only the test part asks, in the file's order."""
        return [_text(prompt) for prompt in self.file.unseen_prompts]

    @cached_property
    def script(self) -> Text:
        """The script."""
        return _text(self.file.script)

    @cached_property
    def mentioned(self) -> frozenset[str]:
        """All the names that at least one prompt uses."""
        return frozenset().union(*(prompt.names for prompt in [*self.prompts, *self.unseen_prompts]))


@dataclass(frozen=True)
class Rendering:
    """One prompt with its script, and the choices that made them."""

    task: str
    category: str
    kind: Kind
    prompt: str
    script: str
    values: dict[str, str]
    """A fresh value for every slot, those that the prompt does not name included: a check passes them as arguments."""
    variants: dict[str, Variant]
    given: frozenset[str]
    """The slots that the prompt names."""
    part: Part
    """Where it belongs."""
    unseen_wording: bool = False
    """Whether the prompt is one of the task's `unseen_prompts`."""

    @property
    def document(self) -> str:
        """The training text: the prompt is a comment, after the shebang where there is one."""
        if self.kind == "command":
            return f"# {self.prompt}\n{self.script}"
        return f"{SHEBANG}# {self.prompt}\n{self.script.removeprefix(SHEBANG)}"


def load_words(folder: Path) -> Words:
    """Returns the generators of `slots.yaml`; raises UserError for a bad file."""
    return read_yaml(folder / WORDS_FILE, Words)


def load_tasks(folder: Path) -> list[Task]:
    """Returns the tasks of `folder/<category>/<task>.yaml`, sorted by name; raises UserError for the first bad file."""
    words = load_words(folder)
    held_out = _load_split(folder / SPLIT_FILE)
    tasks: dict[str, Task] = {}
    for path in sorted(folder.glob("*/*.yaml")):
        name = path.stem
        if name in tasks:
            raise UserError(f"{path}: name: another task is called {name}, in {tasks[name].category}")
        task = Task(name, path.parent.name, read_yaml(path, TaskFile), words, held_out.pop(name, None))
        _check(path, task)
        tasks[name] = task
    if not tasks:
        raise UserError(f"{folder}: no tasks here: expected <category>/<task>.yaml")
    for name, part in held_out.items():
        raise UserError(f"{folder / SPLIT_FILE}: {part}: there is no task {name}")
    return [tasks[name] for name in sorted(tasks)]


def _load_split(path: Path) -> dict[str, Part]:
    """Reads which part has which task for itself; a folder of one's own need not have the file."""
    if not path.exists():
        return {}
    split = read_yaml(path, SplitFile)
    if twice := set(split.validation) & set(split.test):
        raise UserError(f"{path}: test: {min(twice)} is in validation too")
    return {**dict.fromkeys(split.validation, "validation"), **dict.fromkeys(split.test, "test")}


def render(task: Task, rng: random.Random, *, unseen_wording: bool = False) -> Rendering:
    """Draws a prompt (with `unseen_wording` one that training never asks), variants and values, and returns the script
    that answers exactly that prompt.

    Raises UserError for a template that cannot be filled in.
    """
    try:
        return _rendered(task, rng, unseen_wording)
    except Exception as error:  # a template calculates, and fails in as many ways as a program
        raise _not_filled_in(task, error) from None


def _not_filled_in(task: Task, error: Exception) -> UserError:
    return UserError(f"{task.category}/{task.name}.yaml: a template cannot be filled in ({type(error).__name__}: {error})")


def _rendered(task: Task, rng: random.Random, unseen_wording: bool) -> Rendering:
    prompt = rng.choice(task.unseen_prompts if unseen_wording else task.prompts)
    values = _fresh_values(task, rng)
    variants = {name: rng.choice(choices) for name, choices in task.file.variants.items()}
    for name in task.mentioned - prompt.names:
        if name in variants:
            variants[name] = task.file.variants[name][0]
    lead = rng.choice(task.words.leads[task.file.kind])
    # Some ask as a comment; the document makes one of every prompt
    request = prompt.render({**values, **variants, "lead": lead}).removeprefix("# ")
    # A prompt may name a slot in a clause that this variant leaves out, or in capitals
    given = frozenset(name for name in prompt.names & values.keys() if values[name].lower() in request.lower())
    said = {name: value if name in given else task.file.slots[name].default for name, value in values.items()}
    return Rendering(
        task=task.name,
        category=task.category,
        kind=task.file.kind,
        prompt=request,
        script=task.script.render({**said, **variants, "given": given}),
        values=values,
        variants=variants,
        given=given,
        part=task.held_out or ("test" if unseen_wording else _part_of_values(sorted({values[name] for name in given}))),
        unseen_wording=unseen_wording,
    )


def _part_of_values(values: list[str]) -> Part:
    """Returns the part that has these values for itself.

    Only the values count and not the task: then equal prompts of two tasks, too, are in the same part. Prompts without a
    value are for training, since there is nothing about them that could be new.
    """
    if not values:
        return "train"
    number = int.from_bytes(hashlib.blake2b("\n".join(values).encode(), digest_size=8).digest(), "big") / 2**64
    return "validation" if number < HELD_OUT_VALUES else "test" if number < 2 * HELD_OUT_VALUES else "train"


def render_check(task: Task, rendering: Rendering) -> tuple[str, str]:
    """Returns the setup and the check that belong to a rendering, both bash; empty where the task has none."""
    names: dict[str, Any] = {**rendering.values, **rendering.variants, "given": rendering.given}
    try:
        setup, check = (_text(text).render(names) for text in (task.file.setup, task.file.check))
    except Exception as error:
        raise _not_filled_in(task, error) from None
    return setup, check


def renderings(tasks: list[Task], rounds: int, seed: int) -> Iterator[Rendering]:
    """Yields renderings with distinct documents, one round over all tasks after another.

    Each task has its own random numbers, so adding a task changes nothing in the documents of the others.
    A task that runs out of new documents yields fewer.
    """
    # A string seeds through SHA-512, the same in every process and Python version.
    generators = [(task, random.Random(f"{seed}/{task.name}")) for task in tasks]
    seen: set[bytes] = set()
    for _ in range(rounds):
        for task, rng in generators:
            rendering = render(task, rng)
            digest = hashlib.blake2b(rendering.document.encode(), digest_size=8).digest()
            if digest not in seen:
                seen.add(digest)
                yield rendering


def task_documents(folder: Path, rounds: int, seed: int) -> Iterator[tuple[str, Literal["train", "validation"]]]:
    """Yields the documents of `renderings` that training may use, each with its part; the test part stays out."""
    for rendering in renderings(load_tasks(folder), rounds, seed):
        if rendering.part != "test":
            yield rendering.document, rendering.part


def _fresh_values(task: Task, rng: random.Random) -> dict[str, str]:
    """Draws a value for every slot, no two alike while the type has others: equal values would hide which is which."""
    values: dict[str, str] = {}
    for name, slot in task.file.slots.items():
        for _ in range(20):
            values[name] = task.words.fresh(slot.type, rng)
            if list(values.values()).count(values[name]) == 1:
                break
    return values


def _check(path: Path, task: Task) -> None:
    """Finds what only shows when a task's parts are held against each other."""
    slots, known = task.file.slots, {*task.file.slots, *task.file.variants, *BUILT_IN}
    texts = {f"prompts.{i}": text for i, text in enumerate(task.file.prompts)}
    texts |= {f"unseen_prompts.{i}": text for i, text in enumerate(task.file.unseen_prompts)}
    texts |= {"script": task.file.script, "setup": task.file.setup, "check": task.file.check}
    used: dict[str, frozenset[str]] = {}
    for key, source in texts.items():
        try:
            used[key] = _text(source).names
        except TemplateError as error:
            raise UserError(f"{path}: {key}: not a template: {' '.join(str(error).split())}") from error
        if unknown := sorted(used[key] - known):
            raise UserError(f"{path}: {key}: {unknown[0]} is neither a slot nor a variant")
    anywhere = task.mentioned | used["script"]
    for name, slot in slots.items():
        if slot.type not in task.words.types:
            raise UserError(f"{path}: slots.{name}: no type is called {slot.type}; {WORDS_FILE} lists them")
        if name not in anywhere:
            raise UserError(f"{path}: slots.{name}: neither a prompt nor the script uses it")
        silent = [key for key in texts if key.startswith(("prompts.", "unseen_prompts.")) and name not in used[key]]
        if slot.default is None and silent:
            raise UserError(f"{path}: slots.{name}: needs a default, because {silent[0]} does not name it")
    for name, choices in task.file.variants.items():
        if name not in anywhere or not choices:
            raise UserError(f"{path}: variants.{name}: it has no values, or neither a prompt nor the script uses it")
    _check_form(path, task)


def _check_form(path: Path, task: Task) -> None:
    """A script opens with the shebang, since its prompt goes below it; a command has none and is one line."""
    script = task.file.script
    if task.file.kind == "script" and not script.startswith(SHEBANG):
        raise UserError(f"{path}: script: must open with {SHEBANG.strip()}; a one-line answer says kind: command")
    if task.file.kind == "command" and (script.startswith("#") or not script.endswith("\n")):
        raise UserError(f"{path}: script: a command is a line without shebang that ends in a newline")
