"""Hashes of what was trained on, so that an evaluation can tell what is new and what is copied, without the texts.

Beside the token files lie three files of sorted uint64 numbers, one number for each training document:

    documents.hash      the document as it was tokenised
    answers.hash        what stands below its request, whatever the white space
    prompts.hash        its request, whatever case and white space

Equal texts have equal hashes. Two of ten million different texts share one with a chance of one in 370,000 (64 bits).
"""

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HASH_DTYPE = np.dtype("<u8")
KINDS = ("documents", "answers", "prompts")
LONGEST_PROMPT_LINES = 5


def text_hash(text: str) -> int:
    """64 bits of a text (BLAKE2b)."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def normal_prompt(prompt: str) -> str:
    """What makes two requests the same one: the words, not their case, white space or the stop at the end."""
    return " ".join(prompt.casefold().split()).rstrip(".")


def normal_answer(answer: str) -> str:
    """The text with every run of white space as one blank."""
    return " ".join(answer.split())


def split_document(document: str) -> tuple[list[str], str]:
    """Returns the lines of the comment at the top, without `# `, and the text below; a shebang belongs to neither."""
    if document.startswith("#!"):
        document = document.partition("\n")[2]
    comment = []
    while document.startswith("# "):
        line, _, document = document.partition("\n")
        comment.append(line[2:])
    return comment, document


def possible_prompts(document: str) -> list[str]:
    """Where a request ends and a script's first comment begins cannot be seen: the first line, the first two, ..."""
    return _possible_prompts(split_document(document)[0])


def _possible_prompts(comment: list[str]) -> list[str]:
    return [normal_prompt("\n".join(comment[:count])) for count in range(1, min(len(comment), LONGEST_PROMPT_LINES) + 1)]


def hashes_of(document: str) -> Iterator[tuple[str, int]]:
    """The kind and value of each hash of a document."""
    yield "documents", text_hash(document)
    yield from hashes_of_parts(document)


def hashes_of_parts(document: str) -> Iterator[tuple[str, int]]:
    """All but the hash of the whole."""
    comment, below = split_document(document)
    if answer := normal_answer(below):
        yield "answers", text_hash(answer)
    for prompt in _possible_prompts(comment):
        yield "prompts", text_hash(prompt)


class HashWriter:
    """Appends the hashes of documents to the files of a folder, in the order in which they come; `sort_hashes` ends it."""

    def __init__(self, folder: Path) -> None:
        self._open = ExitStack()
        self._streams = {kind: self._open.enter_context(hash_file(folder, kind).open("wb")) for kind in KINDS}

    def add(self, document: str, document_hash: int) -> None:
        """A document that is trained on, and the hash of it, which is known already."""
        self._streams["documents"].write(document_hash.to_bytes(8, "little"))
        for kind, number in hashes_of_parts(document):
            self._streams[kind].write(number.to_bytes(8, "little"))

    def close(self) -> None:
        """Close the files."""
        self._open.close()


def hash_file(folder: Path, kind: str) -> Path:
    """Where the hashes of a kind are in a prepared folder."""
    return folder / f"{kind}.hash"


def sort_hashes(folder: Path) -> dict[str, dict[str, Any]]:
    """Sort the files in place, mapped into memory, and return what the manifest says of each: how many, and a checksum."""
    described = {}
    for kind in KINDS:
        file = hash_file(folder, kind)
        count = file.stat().st_size // HASH_DTYPE.itemsize
        if count:  # an empty file cannot be mapped
            numbers = np.memmap(file, HASH_DTYPE, mode="r+")
            numbers.sort()
            numbers.flush()
        described[kind] = {"count": count, "sha256": checksum(open_hashes(file))}
    return described


def open_hashes(file: Path) -> NDArray[np.uint64]:
    """The sorted numbers of a file, mapped into memory. Raises OSError where it is not there."""
    return np.memmap(file, HASH_DTYPE, mode="r") if file.stat().st_size else np.zeros(0, HASH_DTYPE)


def checksum(numbers: NDArray[np.uint64]) -> str:
    """SHA-256 of the file that the numbers are in."""
    return hashlib.sha256(numbers.data).hexdigest()


def holds(numbers: NDArray[np.uint64], number: int) -> bool:
    """Whether a number is among sorted ones."""
    wanted = np.uint64(number)
    place = int(np.searchsorted(numbers, wanted))
    return place < len(numbers) and bool(numbers[place] == wanted)
