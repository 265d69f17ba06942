"""The bundled bash tasks as a data set of files, for reading and for other people's tools; and a skeleton of a new task."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TextIO

from mlx_codegen.config import TokenizerConfig
from mlx_codegen.data.tasks import SHEBANG, Part, Rendering, Task, renderings
from mlx_codegen.errors import UserError
from mlx_codegen.tokenizer import Tokenizer, train_tokenizer

PARTS: tuple[Part, ...] = ("train", "validation", "test")
VOCABULARY = 8000
TOKENIZER_DOCUMENTS = 8000
DOCUMENTS_AT_ONCE = 2000
LENGTHS = ((5, "1-5"), (20, "6-20"), (10**9, "over 20"))
"""Length classes, by non-blank lines below the shebang and the prompt."""


@dataclass
class Counts:
    """What was written of one category or one part."""

    tasks: int = 0
    pairs: int = 0
    lines: int = 0
    tokens: int = 0
    characters: int = 0


@dataclass
class Stats:
    """`stats.json`."""

    seed: int
    renderings_per_task: int
    tokenizer: str
    total: Counts = field(default_factory=Counts)
    categories: dict[str, Counts] = field(default_factory=dict)
    parts: dict[str, Counts] = field(default_factory=dict)
    script_tasks_by_lines: dict[str, int] = field(default_factory=dict)
    command_tasks: int = 0
    unseen_tasks: dict[str, list[str]] = field(default_factory=dict)
    """Whole tasks that only this part has."""


def build_corpus(
    folder: Path,
    tasks: list[Task],
    rounds: int,
    seed: int,
    tokenizer: Tokenizer | None = None,
    on_pairs: Callable[[int], None] = lambda pairs: None,
) -> Stats:
    """Writes the corpus into a new folder, which appears whole or not at all, and returns its figures.

    - `bash_scripts/<task>-<number>.sh`: the scripts of the train part, each with its prompt as a comment;
    - `pairs.jsonl`, `pairs-validation.jsonl`, `pairs-test.jsonl`: prompt and script of every rendering;
    - `stats.json`.

    Tokens are counted with `tokenizer`, or else with one trained on the train part. `on_pairs` hears how many pairs are
    written. Raises UserError where the folder holds something already.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty; name a new folder")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        (partial / "bash_scripts").mkdir(parents=True)
        tokenizer, name = (
            (tokenizer, tokenizer.hash) if tokenizer else (_own_tokenizer(tasks, rounds, seed), "trained on this corpus")
        )
        stats = Stats(seed, rounds, f"{tokenizer.vocab_size} pieces, {name}")
        _count_tasks(stats, tasks)
        _write_pairs(partial, tasks, stats, tokenizer, on_pairs)
        (partial / "stats.json").write_text(json.dumps(asdict(stats), indent=2) + "\n", encoding="utf-8")
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return stats


def script_lines(script: str) -> int:
    """Non-blank lines of a script without its shebang; comments count."""
    return sum(1 for line in script.removeprefix(SHEBANG).splitlines() if line.strip())


def _own_tokenizer(tasks: list[Task], rounds: int, seed: int) -> Tokenizer:
    documents = (r.document for r in renderings(tasks, rounds, seed) if r.part == "train")
    return train_tokenizer(islice(documents, TOKENIZER_DOCUMENTS), TokenizerConfig(), VOCABULARY)


def _count_tasks(stats: Stats, tasks: list[Task]) -> None:
    """Counts tasks by category and by the length of a typical rendering."""
    typical: dict[str, list[int]] = {task.name: [] for task in tasks}
    for rendering in renderings(tasks, 9, stats.seed):
        typical[rendering.task].append(script_lines(rendering.script))
    stats.script_tasks_by_lines = dict.fromkeys((name for _, name in LENGTHS), 0)
    for task in tasks:
        stats.categories.setdefault(task.category, Counts()).tasks += 1
        if task.file.kind == "command":
            stats.command_tasks += 1
        else:
            median = sorted(typical[task.name])[len(typical[task.name]) // 2]
            stats.script_tasks_by_lines[next(name for most, name in LENGTHS if median <= most)] += 1
        if task.held_out:
            stats.unseen_tasks.setdefault(task.held_out, []).append(task.name)
    stats.total.tasks = len(tasks)


def _write_pairs(folder: Path, tasks: list[Task], stats: Stats, tokenizer: Tokenizer, on_pairs: Callable[[int], None]) -> None:
    stats.parts = {part: Counts() for part in PARTS}
    seen_tasks: dict[Part, set[str]] = {part: set() for part in PARTS}
    files = {part: _pairs_file(folder, part).open("w", encoding="utf-8") for part in PARTS}
    stream = renderings(tasks, stats.renderings_per_task, stats.seed)
    try:
        while batch := list(islice(stream, DOCUMENTS_AT_ONCE)):
            ids = tokenizer.encode_batch([r.document for r in batch], num_threads=os.cpu_count() or 1)
            for rendering, tokens in zip(batch, ids, strict=True):
                _write_pair(folder, files[rendering.part], rendering, stats.total.pairs)
                seen_tasks[rendering.part].add(rendering.task)
                for counts in (stats.total, stats.categories[rendering.category], stats.parts[rendering.part]):
                    counts.pairs += 1
                    counts.lines += script_lines(rendering.script)
                    counts.tokens += len(tokens)
                    counts.characters += len(rendering.document)
            on_pairs(stats.total.pairs)
    finally:
        for file in files.values():
            file.close()
    for part, names in seen_tasks.items():
        stats.parts[part].tasks = len(names)


def _pairs_file(folder: Path, part: Part) -> Path:
    """The train part has the plain name: whoever trains on `pairs.jsonl` must not meet the test part in it."""
    return folder / ("pairs.jsonl" if part == "train" else f"pairs-{part}.jsonl")


def _write_pair(folder: Path, file: TextIO, rendering: Rendering, number: int) -> None:
    record = {
        "prompt": rendering.prompt,
        "script": rendering.script,
        "task": rendering.task,
        "category": rendering.category,
        "kind": rendering.kind,
    }
    file.write(json.dumps(record, ensure_ascii=False) + "\n")
    if rendering.kind == "script" and rendering.part == "train":
        script = folder / "bash_scripts" / f"{rendering.task}-{number:06}.sh"
        script.write_text(rendering.document, encoding="utf-8")


SKELETON = """\
# What one rendering should do, in a sentence. `mlx-codegen corpus verify {name}` says when the task is complete.
prompts:
  - Count the files in a folder
  - "{{{{ lead }}}} count the files in {{{{ dir }}}}"
  - "{{{{ lead }}}} count the files in a folder{{% if log %}} and log the number{{% endif %}}"
  - "How many files are in {{{{ dir }}}}?"
  - "Count what lies in {{{{ dir }}}}{{% if log %}}, with a line in the system log{{% endif %}}"
  - "number of files in {{{{ dir }}}}"
  - "{{{{ dir }}}}: tell me how many files there are"
  - "I would like to know how many files {{{{ dir }}}} holds"
unseen_prompts:
  - "Tell me the number of files somewhere"
  - "Is there a way to count what files {{{{ dir }}}} has?"
slots:
  dir: {{type: directory, default: "${{1:-.}}"}}
variants: {{log: }}
script: |
  #!/bin/bash

  dir="{{{{ dir }}}}"

  count=$(find "$dir" -type f | wc -l)
  echo "$count files in $dir"
  {{% if log %}}
  logger "$count files in $dir"
  {{% endif %}}
setup: |
  mkdir -p "{{{{ dir }}}}" && touch "{{{{ dir }}}}/a" "{{{{ dir }}}}/b"
check: |
  run "{{{{ dir }}}}" && grep -qw 2 "$OUT"{{% if log %}} && called '^logger .*2'{{% endif +%}}
"""
COMMAND_SKELETON = """\
kind: command
prompts:
  - Count the files in this folder
  - "{{{{ lead }}}} count the files in {{{{ dir }}}}"
  - "How many files are in {{{{ dir }}}}?"
  - "Count what lies in {{{{ dir }}}}"
  - "number of files below {{{{ dir }}}}"
  - "{{{{ dir }}}}: tell me how many files there are"
  - "I would like to know how many files {{{{ dir }}}} holds"
  - "{{{{ lead }}}} print the number of files in {{{{ dir }}}}"
unseen_prompts:
  - "Files here, counted"
  - "What number of files does {{{{ dir }}}} have?"
slots:
  dir: {{type: directory, default: .}}
script: |
  find {{{{ dir }}}} -type f | wc -l
setup: |
  mkdir -p "{{{{ dir }}}}" && touch "{{{{ dir }}}}/a" "{{{{ dir }}}}/b" a b
check: |
  run && grep -qw 2 "$OUT"
"""


def new_task(folder: Path, category: str, name: str, *, command: bool = False) -> Path:
    """Writes a small working task to start from; UserError for an unknown category, or a name that is taken or cannot be one."""
    known = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name != "stubs") if folder.is_dir() else []
    if category not in known:
        raise UserError(f"no category {category} in {folder}; there are: {', '.join(known) or 'none'}")
    if not name.isidentifier() or name != name.lower():
        raise UserError(f"{name} is no name for a task; use small letters, digits and _, for example rotate_keys")
    if taken := list(_files_called(folder, name)):
        raise UserError(f"{taken[0]} exists; choose another name")
    path = folder / category / f"{name}.yaml"
    path.write_text((COMMAND_SKELETON if command else SKELETON).format(name=name), encoding="utf-8")
    return path


def _files_called(folder: Path, name: str) -> Iterator[Path]:
    return folder.glob(f"*/{name}.yaml")
