"""Sources: every kind of file becomes the documents that are in it, as a stream, and a bad one is told in one line."""

import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from mlx_codegen.config import SourceConfig
from mlx_codegen.data.sources import LONGEST_DOCUMENT_CHARACTERS, pair_document, read_documents
from mlx_codegen.errors import UserError

ROOT = Path(__file__).parents[1]


def documents(path: Path, **settings: Any) -> list[str]:
    """All documents of a local source."""
    return list(read_documents(SourceConfig(name="test", path=str(path), **settings)))


def complaint(path: Path, **settings: Any) -> str:
    """The one line that a bad source gets."""
    with pytest.raises(UserError) as caught:
        documents(path, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write_jsonl(file: Path, *rows: Any) -> Path:
    """One JSON value a line."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def write_parquet(file: Path, columns: dict[str, list[Any]]) -> Path:
    """A Parquet file as people have them."""
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return file


# Plain text


def test_text_is_cut_at_end_of_text_lines(tmp_path: Path) -> None:
    """`<|endoftext|>` on a line of its own separates documents, as TinyStories' files have it; inside a line it is text."""
    file = tmp_path / "stories.txt"
    file.write_bytes(
        "One.\nStill one.\n<|endoftext|>\nTwo <|endoftext|> two.\n  <|endoftext|>  \n<|endoftext|>\nDrei: ä.".encode()
    )
    assert documents(file) == ["One.\nStill one.\n", "Two <|endoftext|> two.\n", "Drei: ä."]


def test_windows_line_ends_separate_documents_too(tmp_path: Path) -> None:
    """CRLF files are cut at the same places."""
    file = tmp_path / "stories.txt"
    file.write_bytes(b"One.\r\n<|endoftext|>\r\nTwo.\r\n")
    assert documents(file) == ["One.\r\n", "Two.\r\n"]


def test_script_is_one_document(tmp_path: Path) -> None:
    """A script is never cut, even where it prints `<|endoftext|>`."""
    script = "#!/bin/bash\ncat <<E\n<|endoftext|>\nE\n"
    (tmp_path / "run.sh").write_text(script)
    assert documents(tmp_path / "run.sh") == [script]


def test_long_text_is_cut_at_an_empty_line(tmp_path: Path) -> None:
    """A book is cut between paragraphs into documents of a bounded size, and nothing of it is lost."""
    paragraph = "It was a dark night. " * 100 + "\n\n"
    book = paragraph * 100
    (tmp_path / "book.txt").write_text(book)
    parts = documents(tmp_path / "book.txt")
    assert len(parts) >= 2 and "".join(parts) == book
    assert all(len(part) <= LONGEST_DOCUMENT_CHARACTERS + len(paragraph) for part in parts)
    assert all(part.strip().startswith("It was") for part in parts)


def test_line_of_a_megabyte_stays_bounded(tmp_path: Path) -> None:
    """A file without a single newline still comes in bounded documents, whole and in order."""
    text = "".join(f"{number} " for number in range(180_000))
    assert len(text) > 1_000_000
    (tmp_path / "line.txt").write_text(text)
    parts = documents(tmp_path / "line.txt")
    assert "".join(parts) == text and max(map(len, parts)) <= 6 * LONGEST_DOCUMENT_CHARACTERS


def test_empty_file_has_no_documents(tmp_path: Path) -> None:
    """Nothing in, nothing out; what an empty corpus means is for the preparation to say."""
    (tmp_path / "empty.txt").write_text("")
    assert documents(tmp_path / "empty.txt") == []


# Folders


def test_folder_is_read_in_order_with_scripts_without_suffix(tmp_path: Path) -> None:
    """Every readable kind below a folder, sorted by path: the same order on every machine. Other kinds are passed over."""
    files = {
        "b.sh": "b\n",
        "a/z.txt": "z\n",
        "a/backup": "#!/bin/bash\nbackup\n",
        "c.md": "c\n",
        "photo.png": "p\n",
        "a.bash": "a\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    write_jsonl(tmp_path / "d.jsonl", {"text": "d\n"})
    assert documents(tmp_path) == ["#!/bin/bash\nbackup\n", "z\n", "a\n", "b\n", "c\n", "d\n"]


def test_files_of_a_scripts_folder_that_hold_no_documents_are_left_out_and_counted(tmp_path: Path) -> None:
    """A LICENSE or a package.json beside the scripts neither becomes training text nor stops the work."""
    (tmp_path / "backup").write_text("#!/bin/bash\nbackup\n")
    (tmp_path / "LICENSE").write_text("Permission is hereby granted\n")
    (tmp_path / "package.json").write_text('{"name": "tools"}')
    skipped: list[str] = []
    source = SourceConfig(name="scripts", path=str(tmp_path))
    assert list(read_documents(source, skipped=skipped.append)) == ["#!/bin/bash\nbackup\n"]
    assert len(skipped) == 2 and "LICENSE" in skipped[0] and "package.json" in skipped[1]


def test_hidden_folders_are_left_alone_but_the_source_may_be_hidden(tmp_path: Path) -> None:
    """What git keeps of a clone is no training text, at any depth; a folder like `~/.scripts` named by a person is."""
    source = tmp_path / ".scripts"
    (source / ".git" / "logs" / "refs").mkdir(parents=True)
    (source / ".git" / "logs" / "refs" / "main").write_text("0000 1111 commit\n")
    (source / ".hidden.sh").write_text("hidden\n")
    (source / "run.sh").write_text("run\n")
    assert documents(source) == ["run\n"]


def test_bad_files_of_a_folder_are_left_out_whole_and_counted(tmp_path: Path) -> None:
    """One binary and one Latin-1 file do not stop a folder of scripts; no part of them gets in, and each is named."""
    (tmp_path / "a.sh").write_text("good\n")
    (tmp_path / "b").write_bytes(b"\x7fELF\0\0\0")
    # The bad byte comes late, when a reader that checks on the way would have handed out documents already.
    (tmp_path / "c.txt").write_bytes(b"fine\n<|endoftext|>\n" + b"x" * 3_000_000 + "Köln".encode("latin-1"))
    left_out: list[str] = []
    source = SourceConfig(name="test", path=str(tmp_path))
    assert list(read_documents(source, skipped=left_out.append)) == ["good\n"]
    assert len(left_out) == 2 and "b: a binary file" in left_out[0] and "c.txt: not UTF-8 text" in left_out[1]


def test_the_same_files_named_by_themselves_are_errors(tmp_path: Path) -> None:
    """A person who names one file means that file: no silence then, and the byte is the one to look at."""
    (tmp_path / "b").write_bytes(b"\x7fELF\0\0\0")
    (tmp_path / "c.txt").write_bytes(b"x" * (1 << 20) + b"\xc3\xa4\xff")
    (tmp_path / "d.txt").write_bytes(b"x" * ((1 << 20) - 1) + b"\xc3")
    (tmp_path / "e.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')
    (tmp_path / "f.json").write_bytes(b'["\xff"]')
    assert "a binary file" in complaint(tmp_path / "b")
    assert f"not UTF-8 text (byte {(1 << 20) + 2})" in complaint(tmp_path / "c.txt")
    assert f"not UTF-8 text (byte {(1 << 20) - 1})" in complaint(tmp_path / "d.txt")
    assert "not UTF-8 text (byte 24)" in complaint(tmp_path / "e.jsonl")
    assert "not UTF-8 text (byte 2)" in complaint(tmp_path / "f.json")


def test_character_across_a_block_border_is_whole(tmp_path: Path) -> None:
    """The check reads blocks; a character that straddles two is no fault."""
    text = "x" * ((1 << 20) - 1) + "ä🎉"
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    assert "".join(documents(tmp_path / "a.txt")) == text


def test_folder_without_text_and_missing_path_are_errors(tmp_path: Path) -> None:
    """Both say what was looked for."""
    (tmp_path / "photo.png").write_bytes(b"x")
    assert f"the folder {tmp_path} holds no .sh" in complaint(tmp_path)
    assert "no file or folder" in complaint(tmp_path / "none") and "bundled" in complaint(tmp_path / "none")


# Records


def test_jsonl_columns_are_found(tmp_path: Path) -> None:
    """text, content, code, script in this order; a row without text (null) and empty lines are passed over."""
    file = write_jsonl(
        tmp_path / "a.jsonl", {"id": 1, "text": "one"}, {"content": "two"}, {"code": "three"}, {"text": None}, "four"
    )
    file.write_text(file.read_text() + "\n\n")
    assert documents(file) == ["one", "two", "three", "four"]


def test_prompt_and_command_make_a_comment_and_a_line(tmp_path: Path) -> None:
    """A pair becomes `# request`, newline, command: the form in which the model is asked later."""
    file = write_jsonl(
        tmp_path / "a.jsonl", {"prompt": "List files", "command": "ls"}, {"page": "x", "prompt": "Two\nlines\n", "command": "w\n"}
    )
    assert documents(file) == ["# List files\nls\n", "# Two\n# lines\nw\n"]


def test_prompt_and_script_make_a_script(tmp_path: Path) -> None:
    """`script_documents` puts the request under a shebang; a script that has one keeps its own."""
    rows = {"prompt": "Say hi", "script": "echo hi"}, {"prompt": "Say ho", "script": "#!/bin/sh\necho ho\n"}
    file = write_jsonl(tmp_path / "a.jsonl", *rows)
    assert documents(file, script_documents=True) == ["#!/bin/bash\n# Say hi\necho hi\n", "#!/bin/sh\n# Say ho\necho ho\n"]


def test_named_columns_win(tmp_path: Path) -> None:
    """`text_column` and `prompt_column` say what is read, whatever else is there."""
    file = write_jsonl(tmp_path / "a.jsonl", {"text": "wrong", "ask": "Right", "do": "true"})
    assert documents(file, text_column="do", prompt_column="ask") == ["# Right\ntrue\n"]
    assert documents(file, text_column="do") == ["true"]


def test_shebang_without_a_body() -> None:
    """A one-line script with its request still ends in a newline and starts with its shebang."""
    assert pair_document("Nothing", "#!/bin/sh") == "#!/bin/sh\n# Nothing\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"text": "a"}\n{"text": \n', "a.jsonl, line 2: not valid JSON"),
        ('\n\n{"text": "a"\n', "a.jsonl, line 3: not valid JSON"),
        ('{"text": "a"}\n{"words": "b", "id": 1}\n', "record 2: no text, content, code, script in it (found: words, id)"),
        ('{"text": 5}\n', "record 1: column 'text' holds int, not text"),
        ("[1, 2]\n", "record 1: expected text or an object, found list"),
        ("5\n", "record 1: expected text or an object, found int"),
        ("{}\n", "(found: nothing)"),
        ('{"text": "a"}\n{"text": "b", "id": ' + "9" * 5000 + "}\n", "a.jsonl, line 2: JSON that cannot be read"),
        ("[" * 100_000, "a.jsonl, line 1: JSON that cannot be read"),
    ],
)
def test_bad_jsonl_names_file_and_place(content: str, words: str, tmp_path: Path) -> None:
    """A fault in a file of a million lines is found by its line."""
    (tmp_path / "a.jsonl").write_text(content)
    assert words in complaint(tmp_path / "a.jsonl")


def test_missing_column_is_named_with_those_there(tmp_path: Path) -> None:
    """A column asked for and absent is named beside the columns that the file has."""
    file = write_jsonl(tmp_path / "a.jsonl", {"text": "a", "id": "b"})
    assert "no column 'body'; it has: text, id" in complaint(file, text_column="body")
    assert "no column 'ask'; it has: text, id" in complaint(file, text_column="text", prompt_column="ask")


@pytest.mark.parametrize("wrap", [lambda rows: rows, lambda rows: {"scripts": rows}, lambda rows: {"version": 1, "items": rows}])
def test_json_lists_of_scripts(wrap: Any, tmp_path: Path) -> None:
    """People bring a list, or `{"scripts": [...]}`, of strings and objects mixed."""
    rows = ["echo a\n", {"content": "echo b\n"}, {"prompt": "Say c", "script": "echo c\n"}]
    (tmp_path / "a.json").write_text(json.dumps(wrap(rows)))
    assert documents(tmp_path / "a.json") == ["echo a\n", "echo b\n", "# Say c\necho c\n"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"a": 1}', "expected a JSON list"),
        ('{"a": [], "b": []}', "expected a JSON list"),
        ('{"scripts": "echo"}', "expected a JSON list"),
        ("5", "expected a JSON list"),
        ("[1]", "record 1: expected text or an object"),
        ("[", "not valid JSON"),
        ("", "not valid JSON"),
    ],
)
def test_other_json_is_refused(content: str, words: str, tmp_path: Path) -> None:
    """JSON of another form says which form is wanted."""
    (tmp_path / "a.json").write_text(content)
    assert words in complaint(tmp_path / "a.json")


def test_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    """Programs of Windows begin JSON files with a byte-order mark."""
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n', encoding="utf-8-sig")
    (tmp_path / "a.json").write_text('["b"]', encoding="utf-8-sig")
    assert documents(tmp_path / "a.jsonl") + documents(tmp_path / "a.json") == ["a", "b"]


def test_parquet_rows(tmp_path: Path) -> None:
    """Text, pairs and named columns come out of Parquet as out of JSON; null is passed over."""
    assert documents(write_parquet(tmp_path / "a.parquet", {"id": [1, 2, 3], "text": ["a", None, "ü"]})) == ["a", "ü"]
    pairs = write_parquet(tmp_path / "b.parquet", {"prompt": ["Say a"], "command": ["echo a"], "ask": ["Sag a"]})
    assert documents(pairs) == ["# Say a\necho a\n"]
    assert documents(pairs, text_column="command", prompt_column="ask") == ["# Sag a\necho a\n"]


def test_bad_parquet_is_named(tmp_path: Path) -> None:
    """A missing column, another kind of file and one damaged in the middle each get one line."""
    assert "(found: id)" in complaint(write_parquet(tmp_path / "a.parquet", {"id": [1]}))
    (tmp_path / "b.parquet").write_bytes(b"no parquet")
    assert "b.parquet: not a readable Parquet file" in complaint(tmp_path / "b.parquet")
    good = write_parquet(tmp_path / "c.parquet", {"text": [f"{number} " * 50 for number in range(2000)]}).read_bytes()
    (tmp_path / "c.parquet").write_bytes(good[:1000] + b"\xff" * 2000 + good[3000:])
    assert "c.parquet: not a readable Parquet file" in complaint(tmp_path / "c.parquet")
    buffers = [None, pyarrow.py_buffer(b"\0\0\0\0\2\0\0\0"), pyarrow.py_buffer(b"\xff\xfe")]
    write_parquet(tmp_path / "d.parquet", {"text": pyarrow.Array.from_buffers(pyarrow.string(), 1, buffers)})
    assert "d.parquet: not a readable Parquet file" in complaint(tmp_path / "d.parquet")


# The hub, bundled data, limits


def test_hub_source_streams_documents(tmp_path: Path) -> None:
    """A data set in the hub's layout (here a folder) is streamed through `datasets`: split, columns and pairs."""
    write_jsonl(tmp_path / "train.jsonl", {"text": "one"}, {"text": "two"})
    write_jsonl(tmp_path / "test.jsonl", {"text": "three"})
    assert list(read_documents(SourceConfig(name="a", hub=str(tmp_path)))) == ["one", "two"]
    assert list(read_documents(SourceConfig(name="a", hub=str(tmp_path), split="test"))) == ["three"]
    with pytest.raises(UserError, match=r"record 1: no column 'body'; it has: text"):
        list(read_documents(SourceConfig(name="a", hub=str(tmp_path), text_column="body")))
    with pytest.raises(UserError, match=r"cannot be read .*nonsense"):
        list(read_documents(SourceConfig(name="a", hub=str(tmp_path), split="nonsense")))


@pytest.mark.parametrize("offline", ["HF_HUB_OFFLINE=1", "HF_ENDPOINT=http://127.0.0.1:9"])
def test_hub_out_of_reach_names_the_local_alternatives(offline: str, tmp_path: Path) -> None:
    """Offline (told, or found out on a port where nobody listens), one line says what to use instead, without retries."""
    name, value = offline.split("=")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), name: value}
    command = [
        sys.executable,
        "-m",
        "mlx_codegen",
        "tokenizer",
        "train",
        str(tmp_path / "out"),
        "--data",
        "hub:roneneldan/TinyStories",
    ]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1  # a retry would print a second line
    assert done.stderr.startswith("error: hub data set roneneldan/TinyStories cannot be read (")
    assert "path: FILE" in done.stderr and "bundled: english or bash" in done.stderr


def test_max_documents_stops_the_reading(tmp_path: Path) -> None:
    """No more than so many are read: what comes after is not even looked at."""
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n' + "broken\n" * 100)
    assert documents(tmp_path / "a.jsonl", max_documents=2) == ["a", "b"]
    assert documents(write_jsonl(tmp_path / "b.jsonl", {"text": "a"}), max_documents=2) == ["a"]


def test_reading_is_a_stream(tmp_path: Path) -> None:
    """The first document is there before the last line is read: memory does not grow with the corpus."""
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\nbroken\n')
    stream = read_documents(SourceConfig(name="test", path=str(tmp_path / "a.jsonl")))
    assert next(stream) == "a"
    with pytest.raises(UserError):
        next(stream)


@pytest.mark.parametrize("kind", ["english", "bash"])
def test_bundled_sources_are_the_same_for_the_same_seed(kind: str) -> None:
    """Bundled data needs no file; its documents depend on the seed alone."""
    source = SourceConfig.model_validate({"name": kind, "bundled": kind})
    first, again, other = (list(islice(read_documents(source, seed), 50)) for seed in (1, 1, 2))
    assert len(set(first)) == 50 and first == again != other
    limited = source.model_copy(update={"max_documents": 3})
    assert len(list(read_documents(limited))) == 3


def test_path_may_start_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`~` in a config means the person's home."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("hello\n")
    assert documents(Path("~/a.txt")) == ["hello\n"]


def test_home_of_nobody_is_a_path_that_is_not_there() -> None:
    assert "no file or folder ~nobody-here/a.txt" in complaint(Path("~nobody-here/a.txt"))
