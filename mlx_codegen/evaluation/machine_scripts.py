"""The shell scripts that this machine came with: real text that nobody tuned to. They are read, never run."""

import hashlib
import os
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from mlx_codegen.data.prepare import clean

SYSTEM_FOLDERS = (Path("/usr/share"), Path("/usr/lib"), Path("/etc"))
SUFFIXES = ("", ".sh", ".bash")
SMALLEST_BYTES, LARGEST_BYTES = 100, 64 * 1024
MOST_FILES = 20_000
"""So many files are opened at most in search of scripts."""
SHEBANG = re.compile(rb"#!\s*(?:\S*/)?(?:env\s+(?:-\S+\s+)*)?(?:bash|dash|sh)(?:\s|$)")


def system_folders() -> list[Path]:
    """The folders of PATH and those where systems keep scripts, each once."""
    on_path = [Path(part) for part in os.environ.get("PATH", os.defpath).split(os.pathsep) if part]
    return list(dict.fromkeys(folder.resolve() for folder in (*on_path, *SYSTEM_FOLDERS)))


def find_scripts(folders: Sequence[Path], seed: int) -> list[Path]:
    """Files below these folders whose first line calls bash or sh, in an order that the seed decides."""
    found = []
    for number, file in enumerate(_candidates(folders)):
        if number == MOST_FILES:
            break
        try:
            with file.open("rb") as stream:
                if SHEBANG.match(stream.read(64)):
                    found.append(file)
        except OSError:
            continue  # not for us to read
    random.Random(seed).shuffle(found)
    return found


def read_scripts(files: Sequence[Path], unreadable: list[Path]) -> Iterator[str]:
    """Texts cleaned as training cleans them, equal ones once; files that hold no UTF-8 text are added to `unreadable`."""
    seen: set[bytes] = set()
    for file in files:
        try:
            text = clean(file.read_bytes().decode("utf-8"))
        except (OSError, UnicodeDecodeError):
            unreadable.append(file)
            continue
        digest = hashlib.blake2b(text.encode()).digest()
        if text and digest not in seen:
            seen.add(digest)
            yield text


def _candidates(folders: Sequence[Path]) -> Iterator[Path]:
    """Plain files that may be scripts by name and size, in an order that is the same every time."""
    seen: set[tuple[int, int]] = set()  # by device and number: PATH may name a folder twice under two names
    for folder in folders:
        for parent, inner, names in os.walk(folder):
            inner.sort()
            for name in sorted(names):
                file = Path(parent, name)
                if file.suffix not in SUFFIXES or not _is_plain(file, seen):
                    continue
                yield file


def _is_plain(file: Path, seen: set[tuple[int, int]]) -> bool:
    try:
        facts = file.stat()
    except OSError:
        return False  # a link to nowhere
    key = facts.st_dev, facts.st_ino
    if not file.is_file() or key in seen:
        return False
    seen.add(key)
    return SMALLEST_BYTES <= facts.st_size <= LARGEST_BYTES
