"""Line by line and from memory, a document has exactly the ids that the tokenizer gives it whole."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_codegen.config import SourceConfig, TokenizerConfig
from mlx_codegen.data import encode
from mlx_codegen.data.encode import TOKEN_DTYPE, DocumentEncoder
from mlx_codegen.data.sources import read_documents
from mlx_codegen.tokenizer import END_OF_TEXT, SPACE_MARK, Tokenizer, train_tokenizer

NASTY = [
    "", "\n", "\n\n\n", "\n\n\na", "a\n\n\n\nb", "a\n", "\na", " \n \n", "\t\n\t\tb\n", "\t", "a\rb\r\nc\r", "\r\n\r\n", "\r",
    f"{SPACE_MARK}", f"a {SPACE_MARK}\n{SPACE_MARK}{SPACE_MARK} b\n", f"\n{SPACE_MARK}\n", "x\0y\n", "Köln\n日本\U0001f600\n",
    "a\u2028b\x0bc\x0cd\x85e\x1cf\n", f"{END_OF_TEXT}\n{END_OF_TEXT}", "  two  blanks  \n    four\n", "    \n    \n", "1234567\n",
    "for i in 1 2 3; do\n\techo \"$i\"\ndone\n" * 3,
]  # fmt: skip


@pytest.fixture(scope="module", params=["bpe", "char"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """One of each kind, of bundled text, so that pieces span words and line ends tempt."""
    texts = [*read_documents(SourceConfig(name="bash", bundled="bash", max_documents=300)), "two\n\nempty lines\n\n\n" * 50]
    return train_tokenizer(texts, TokenizerConfig(type=request.param), 1200)


def whole(tokenizer: Tokenizer, document: str) -> bytes:
    """What the file must hold."""
    return np.array([*tokenizer.encode(document), tokenizer.end_of_text_id], TOKEN_DTYPE).tobytes()


def test_nasty_documents_have_the_ids_of_the_whole(tokenizer: Tokenizer) -> None:
    """Runs of newlines, tabs, carriage returns, space marks, control tokens spelled out: together, alone, and remembered."""
    assert tokenizer.ends_pieces_at_newline
    expected = [whole(tokenizer, document) for document in NASTY]
    encoder = DocumentEncoder(tokenizer, num_threads=2)
    for _ in range(3):
        assert encoder.encode(NASTY) == expected
    assert [DocumentEncoder(tokenizer).encode([document]) for document in NASTY] == [[data] for data in expected]
    assert DocumentEncoder(tokenizer).encode([]) == []


@given(st.lists(st.text("a e{$\n\n\n\t\r\0" + SPACE_MARK + "ä\U0001f600", max_size=40), max_size=8))
@settings(deadline=None, max_examples=150)
def test_any_documents_have_the_ids_of_the_whole(tokenizer: Tokenizer, documents: list[str]) -> None:
    """Whatever stands beside a newline."""
    assert DocumentEncoder(tokenizer).encode(documents) == [whole(tokenizer, document) for document in documents]


def test_real_scripts_have_the_ids_of_the_whole(tokenizer: Tokenizer) -> None:
    """Bundled documents, in small batches, so that most lines are remembered from an earlier one."""
    documents = list(read_documents(SourceConfig(name="bash", bundled="bash", max_documents=900), seed=1))
    encoder = DocumentEncoder(tokenizer)
    for start in range(0, len(documents), 100):
        batch = documents[start : start + 100]
        assert encoder.encode(batch) == [whole(tokenizer, document) for document in batch]


def test_a_full_table_forgets_and_stays_right(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded: the table never holds more than its limit and one batch, and forgetting changes no id."""
    monkeypatch.setattr(encode, "REMEMBERED_CHARACTERS", 500)
    monkeypatch.setattr(encode, "CALL_CHARACTERS", 100)
    encoder, rng, forgot = DocumentEncoder(tokenizer), random.Random(0), 0
    for number in range(60):
        documents = [f"line {rng.randrange(1000)}\nfi\n" for _ in range(10)]
        before = len(encoder._known)
        assert encoder.encode(documents) == [whole(tokenizer, document) for document in documents]
        forgot += len(encoder._known) < before
        assert sum(map(len, encoder._known)) <= 500 + 10 * len("line 000") + 2, number
    assert forgot > 3


def test_tokenizer_whose_pieces_span_lines_is_given_whole_documents(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tokenizer of another project may join a line's end to what follows: then lines are not cut apart."""
    given: list[str] = []
    original = Tokenizer.encode_batch

    def watch(self: Tokenizer, texts: list[str], num_threads: int = 1) -> list[list[int]]:
        given.extend(texts)
        return original(self, texts, num_threads)

    monkeypatch.setattr(Tokenizer, "encode_batch", watch)
    monkeypatch.setattr(Tokenizer, "ends_pieces_at_newline", False)
    documents = ["if true\nthen\n", "fi\n"]
    assert DocumentEncoder(tokenizer).encode(documents) == [whole(tokenizer, document) for document in documents]
    assert set(documents) <= set(given) and "then" not in given
