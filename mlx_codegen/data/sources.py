"""Where text comes from: the hub, local files and folders, and the data that ships with the project.

Every origin becomes an iterator of documents (plain strings), read as a stream so that memory does not grow with the
corpus. A file that is named by itself must be good; in a folder, files that are no UTF-8 text are left out and counted.
"""

import codecs
import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from mlx_codegen.config import SourceConfig, expanded, repository_folder
from mlx_codegen.data.fresh_values import other_manner, shared_values, with_values_replaced
from mlx_codegen.data.stories import story_documents
from mlx_codegen.data.tasks import load_words, task_documents
from mlx_codegen.errors import UserError
from mlx_codegen.tokenizer import END_OF_TEXT

Split = Literal["train", "validation"]


@dataclass(frozen=True)
class Document:
    """A text, and what decides its split: the source itself, or a hash of the text, or of the text that it was made from."""

    text: str
    split: Split | None = None
    origin: str | None = None


Record = str | tuple[str, str]
"""A text, or a pair of prompt and answer."""
Skipped = Callable[[str], None]
"""Called with one line for each file of a folder that is left out."""

SCRIPT_SUFFIXES = (".sh", ".bash")
PLAIN_SUFFIXES = (*SCRIPT_SUFFIXES, ".txt", ".md", ".py")
SUFFIXES = (*PLAIN_SUFFIXES, ".jsonl", ".json", ".parquet")
TEXT_COLUMNS = ("text", "content", "code", "script")
PROMPT_COLUMNS = ("prompt", "description", "instruction", "request")
ANSWER_COLUMNS = ("command", "script", "code", "content", "completion", "response")
# A longer plain file is a book, not a document: it is cut at the next empty line, so that train and validation
# both get some of it and one file cannot fill the memory.
LONGEST_DOCUMENT_CHARACTERS = 64 * 1024
HUB_SECONDS = 10
BUNDLED_STORIES = 12_000
BUNDLED_RENDERINGS_PER_TASK = 400


def read_documents(source: SourceConfig, seed: int = 0, skipped: Skipped = lambda line: None) -> Iterator[str]:
    """Documents of a source, in its own order, at most `max_documents` of them.

    Raises UserError for a missing, binary or non-UTF-8 file, a column that is not there, and a hub out of reach.
    """
    return (document.text for document in read_split_documents(source, seed, skipped))


def read_split_documents(source: SourceConfig, seed: int = 0, skipped: Skipped = lambda line: None) -> Iterator[Document]:
    """Documents as `read_documents` gives them, each with what decides its split.

    The bundled bash tasks bring their split. Versions of a pair with fresh values go where the pair itself goes.
    Of a streamed source these are the documents of its first shard.
    """
    if source.bundled == "bash":
        tasks = task_documents(repository_folder("data") / "bash", BUNDLED_RENDERINGS_PER_TASK, seed)
        documents: Iterator[Document] = (Document(text, split) for text, split in tasks)
    else:
        documents = _open(source, seed, skipped)
    yield from islice(documents, source.shard_documents if source.stream else source.max_documents)


def pair_document(prompt: str, answer: str, *, script: bool = False) -> str:
    """A request and its answer as one training document: the prompt is a comment (DESIGN.md, decision 3).

    A script (or an answer that starts with `#!`) keeps its first line first: shebang, `# prompt`, the rest.
    """
    comment = "".join(f"# {line}\n" for line in prompt.strip().splitlines())
    answer = answer.rstrip("\n") + "\n"
    if answer.startswith("#!"):
        shebang, _, rest = answer.partition("\n")
        return f"{shebang}\n{comment}{rest}"
    return f"#!/bin/bash\n{comment}{answer}" if script else f"{comment}{answer}"


def _open(source: SourceConfig, seed: int, skipped: Skipped) -> Iterator[Document]:
    if source.bundled == "english":
        count = source.max_documents or BUNDLED_STORIES
        stories = story_documents(repository_folder("data") / "english", count, seed)
        return (Document(text) for text in stories)
    records = _hub_records(source) if source.hub is not None else _path_records(expanded(str(source.path)), source, skipped)
    if source.fresh_values:
        return _with_versions(records, source, seed)
    return (Document(_text(record, source)) for record in records)


def _text(record: Record, source: SourceConfig) -> str:
    return record if isinstance(record, str) else pair_document(*record, script=source.script_documents)


def _with_versions(records: Iterator[Record], source: SourceConfig, seed: int) -> Iterator[Document]:
    """Each pair once as it is (that is what validation sees) and `versions` times with fresh values and another manner."""
    words = load_words(repository_folder("data") / "bash")
    for number, record in enumerate(records):
        original = _text(record, source)
        if isinstance(record, str):
            yield Document(original)
            continue
        # Not the pair's text but its place seeds, so that equal pairs get different values
        rng = random.Random(f"{seed}/{source.name}/{number}")
        yield Document(original, origin=original)
        values = shared_values(*record, words)
        for _ in range(source.versions):
            prompt, answer = with_values_replaced(*record, values, rng) if rng.random() < source.fresh_values else record
            yield Document(_text((other_manner(prompt, rng), answer), source), origin=original)


def source_files(path: Path) -> list[Path]:
    """The files that a path stands for: itself, or every readable kind below a folder, sorted."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"no file or folder {path}; give a path that exists, or a bundled source")
    files = sorted(file for file in path.rglob("*") if file.is_file() and _readable_kind(file.relative_to(path)))
    if not files:
        raise UserError(f"the folder {path} holds no {', '.join(SUFFIXES)} files")
    return files


def _readable_kind(file: Path) -> bool:
    # Scripts often have no suffix at all (`bin/backup`). Hidden folders (.git) hold no work of a person.
    hidden = any(part.startswith(".") for part in file.parts)
    return not hidden and (file.suffix.lower() in SUFFIXES or not file.suffix)


def _path_records(path: Path, source: SourceConfig, skipped: Skipped) -> Iterator[Record]:
    for file in source_files(path):
        try:
            yield from _file_records(file, source, named=file == path)
        except _NotUsableError as error:
            if file == path:
                raise UserError(str(error)) from None
            skipped(str(error))


def _has_shebang(file: Path) -> bool:
    """Tells a script without suffix from a LICENSE or a Makefile beside it."""
    with file.open("rb") as stream:
        return stream.read(2) == b"#!"


class _NotUsableError(Exception):
    """A file with no documents in it: binary, not UTF-8, or something else than text and scripts."""


def _file_records(file: Path, source: SourceConfig, *, named: bool) -> Iterator[Record]:
    """Texts and pairs of one file; `named` if a person gave it by name, not only its folder."""
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        yield from _records(_parquet_rows(file, source), source, str(file))
        return
    _refuse_what_is_no_text(file)
    if not named and not suffix and not _has_shebang(file):
        raise _NotUsableError(f"{file}: neither a suffix nor a #! line")
    if suffix == ".jsonl":
        yield from _records(_jsonl_rows(file), source, str(file))
    elif suffix == ".json":
        yield from _records(_json_rows(file), source, str(file))
    else:
        yield from _plain_documents(file)


def _plain_documents(file: Path) -> Iterator[str]:
    """Scripts are one document each; other text is cut at `<|endoftext|>` lines and, where very long, at empty lines."""
    whole = file.suffix.lower() in SCRIPT_SUFFIXES
    lines: list[str] = []
    length = 0
    for line in _text_lines(file):
        boundary = not whole and line.strip() == END_OF_TEXT
        full = (length > LONGEST_DOCUMENT_CHARACTERS and not line.strip()) or length > 4 * LONGEST_DOCUMENT_CHARACTERS
        if (boundary or full) and lines:
            yield "".join(lines)
            lines, length = [], 0
        if not boundary:
            lines.append(line)
            length += len(line)
    if lines:
        yield "".join(lines)


def _text_lines(file: Path) -> Iterator[str]:
    """Lines of a text file with their ends as they are; a line without end comes in parts of a bounded size."""
    with file.open(encoding="utf-8", newline="") as stream:
        while line := stream.readline(LONGEST_DOCUMENT_CHARACTERS):
            yield line


def _refuse_what_is_no_text(file: Path) -> None:
    """A NUL byte near the start marks a binary file, as in git and grep; the rest must be UTF-8.

    The whole file is checked before any of it is used, so that a bad one is left out whole.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    position = 0
    try:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                if position == 0 and b"\0" in block[:8192]:
                    raise _NotUsableError(f"{file}: a binary file, not text; remove it from the source")
                half_character, _ = decoder.getstate()
                decoder.decode(block)
                position += len(block)
            half_character, _ = decoder.getstate()
            decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        where = position - len(half_character) + error.start
        raise _NotUsableError(f"{file}: not UTF-8 text (byte {where}); convert it with iconv") from None
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from None


def _jsonl_rows(file: Path) -> Iterator[Any]:
    with file.open(encoding="utf-8-sig") as stream:  # -sig: programs of Windows begin files with a byte-order mark
        for number, line in enumerate(stream, 1):
            if line.strip():
                yield _parse_json(line, f"{file}, line {number}")


def _json_rows(file: Path) -> Iterator[Any]:
    """A JSON list, or an object with one under `scripts` (or another single list)."""
    value = _parse_json(file.read_text(encoding="utf-8-sig"), str(file))
    if isinstance(value, dict):
        lists = [entry for entry in value.values() if isinstance(entry, list)]
        value = value.get("scripts", lists[0] if len(lists) == 1 else None)
    if not isinstance(value, list):
        raise _NotUsableError(f'{file}: expected a JSON list, or an object like {{"scripts": [...]}}')
    yield from value


def _parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not valid JSON ({error.msg} at column {error.colno})") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise UserError(f"{where}: JSON that cannot be read ({error})") from None


def _parquet_rows(file: Path, source: SourceConfig) -> Iterator[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
        wanted = {source.text_column, source.prompt_column, *TEXT_COLUMNS, *PROMPT_COLUMNS, *ANSWER_COLUMNS}
        columns = [name for name in table.schema_arrow.names if name in wanted]
        for batch in table.iter_batches(batch_size=1024, columns=columns or None):
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:  # a damaged page is an OSError
        raise UserError(f"{file}: not a readable Parquet file ({str(error).splitlines()[0]})") from None


class HubError(UserError):
    """A hub data set that cannot be read now. Tried again later it may be there."""

    def __init__(self, name: str, error: Exception) -> None:
        reason = str(error).strip().splitlines()
        self.short = f"hub data set {name} cannot be read ({type(error).__name__}: {reason[0] if reason else 'no reason given'})"
        super().__init__(
            f"{self.short}; offline, use a local copy (path: FILE) or the data that ships here (bundled: english or bash)"
        )


class HubStream:
    """The documents of a hub data set in its order, to be left anywhere and taken up there again later."""

    def __init__(self, source: SourceConfig) -> None:
        """At the beginning. Raises HubError where the data set is out of reach."""
        self._source = source
        with _hub_errors(source):
            self._rows = _hub_rows(source)
            self._records = self._open_records()

    def go_to(self, state: dict[str, Any]) -> None:
        """Where `state()` was taken."""
        with _hub_errors(self._source):
            self._rows.load_state_dict(state)
            self._records = self._open_records()

    def __iter__(self) -> Iterator[str]:
        """The documents that are left. Raises HubError where they cannot be read, UserError where they are no text."""
        with _hub_errors(self._source):
            for record in self._records:
                yield _text(record, self._source)

    def state(self) -> dict[str, Any]:
        """Where the next document begins, in plain values."""
        state: dict[str, Any] = self._rows.state_dict()
        return state

    def _open_records(self) -> Iterator[Record]:
        return _records(iter(self._rows), self._source, f"hub data set {self._source.hub}")


def _hub_records(source: SourceConfig) -> Iterator[Record]:
    """Stream a data set of the Hugging Face hub (or a local folder in a hub data set's layout)."""
    with _hub_errors(source):
        yield from _records(iter(_hub_rows(source)), source, f"hub data set {source.hub}")


def _hub_rows(source: SourceConfig) -> Any:
    import datasets

    datasets.disable_progress_bars()
    _ask_hub(str(source.hub))
    return datasets.load_dataset(str(source.hub), source.subset, split=source.split, streaming=True)


@contextmanager
def _hub_errors(source: SourceConfig) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # datasets raises a dozen unrelated types for "not reachable" and "not there"
        raise HubError(str(source.hub), error) from None


def _ask_hub(name: str) -> None:
    """One short question, so that an unreachable hub is known at once: `datasets` itself asks six times, half a minute."""
    from huggingface_hub import constants, get_session

    if not Path(name).is_dir():
        get_session().head(constants.ENDPOINT, timeout=HUB_SECONDS)


def _records(rows: Iterator[Any], source: SourceConfig, where: str) -> Iterator[Record]:
    for number, row in enumerate(rows, 1):
        record = row if isinstance(row, str) else _record(row, source, f"{where}, record {number}")
        if record is not None:
            yield record


def _record(row: Any, source: SourceConfig, where: str) -> Record | None:
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected text or an object, found {type(row).__name__}")
    if source.text_column is not None:
        prompt = _column(row, source.prompt_column, where) if source.prompt_column is not None else None
        answer = _column(row, source.text_column, where)
    else:
        prompt, answer = _guess_columns(row, where)
    if answer is None:
        return None
    return answer if prompt is None else (prompt, answer)


def _guess_columns(row: dict[str, Any], where: str) -> tuple[str | None, str | None]:
    prompt_name = next((name for name in PROMPT_COLUMNS if isinstance(row.get(name), str)), None)
    answer_name = next((name for name in ANSWER_COLUMNS if isinstance(row.get(name), str)), None)
    if prompt_name is not None and answer_name is not None:
        return row[prompt_name], row[answer_name]
    text_name = next((name for name in TEXT_COLUMNS if name in row), None)
    if text_name is None:
        found = ", ".join(map(str, row)) or "nothing"
        raise UserError(f"{where}: no {', '.join(TEXT_COLUMNS)} in it (found: {found}); name the column with text_column")
    return None, _column(row, text_name, where)


def _column(row: dict[str, Any], name: str, where: str) -> str | None:
    if name not in row:
        raise UserError(f"{where}: no column '{name}'; it has: {', '.join(map(str, row))}")
    value = row[name]
    if value is not None and not isinstance(value, str):
        raise UserError(f"{where}: column '{name}' holds {type(value).__name__}, not text")
    return value
