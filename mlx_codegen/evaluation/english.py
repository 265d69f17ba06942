"""Is a text English? A plain measure: most of its words are known ones, and no line looks like bash.

The known words are those of `data/english`, the patterns that the bundled stories and explanations are written from. Words
with a capital do not count either way: names are in no list. Tried on 240 characters each: 99 % of 1,000 TinyStories pass,
96 % of 700 pieces of children's books, none of 2,000 one-line commands (NL2Bash, tldr), 1 of 1,500 bundled bash documents.
Sense and grammar are not judged.
"""

import re
from functools import cache

from mlx_codegen.config import repository_folder

KNOWN_SHARE = 0.8
FEWEST_WORDS = 5
"""Of less nothing can be said."""

_HOLE = re.compile(r"\{[^}]*\}")
_PUNCTUATION = ".,!?;:\"'()“”‘’–—-…"
_JOINT = re.compile(r"n['’]t$|['’]\w*$|-")
"""Where a word comes apart: didn't, dog's, tick-tock."""
_BASH = re.compile(
    r"""
    ^\s*\#                                   # a comment
    | [$`|\\{}<>=~]                          # signs that English does without
    | && | ;; | \*\. | ;\s*(?:then|do)\s*$
    | (?:^|\s)--?[a-zA-Z][\w-]*(?:\s|$)      # an option
    | (?:^|\s)[.~]?/\w                       # a path
    | ^\s*(?:fi|done|esac|then|else|do)\s*$
    """,
    re.VERBOSE,
)


@cache
def known_words() -> frozenset[str]:
    """All words of the bundled English, in small letters."""
    files = sorted((repository_folder("data") / "english").glob("*.yaml"))
    text = " ".join(_HOLE.sub(" ", file.read_text(encoding="utf-8")) for file in files)
    return frozenset(re.findall(r"[a-z]+", text.lower()))


def count_known(words: list[str]) -> tuple[int, int]:
    """How many of the words are known, and how many there are, those with a capital left out of both."""
    bare = [word.strip(_PUNCTUATION) for word in words]
    small = [word for word in bare if word and not word[0].isupper()]
    return sum(_is_known(word) for word in small), len(small)


def looks_like_bash(line: str) -> bool:
    """Whether a line has what shell scripts have and stories do not."""
    return bool(_BASH.search(line))


def is_english(text: str) -> bool:
    """Whether enough words are known and no line looks like bash; False for a text of a few words."""
    words = text.split()
    known, counted = count_known(words)
    enough = len(words) >= FEWEST_WORDS and known >= KNOWN_SHARE * counted
    return enough and not any(looks_like_bash(line) for line in text.splitlines())


def _is_known(word: str) -> bool:
    return all(part in known_words() for part in _JOINT.split(word) if part)
