"""The tokenizer: every text comes back as it went in, text is never a control token, and small corpora are served."""

import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlx_codegen.cli.main import run
from mlx_codegen.config import PhaseConfig, SourceConfig, TokenizerConfig
from mlx_codegen.data.prepare import training_texts
from mlx_codegen.data.sources import read_documents
from mlx_codegen.errors import UserError
from mlx_codegen.tokenizer import CONTROL_TOKENS, END_OF_TEXT, PADDING, Tokenizer, train_tokenizer
from mlx_codegen.tokenizer_report import longest, measure, most_frequent

ROOT = Path(__file__).parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"
SMALL_CORPUS = [
    "Once upon a time, a small cat sat on the mat. It was happy.\n" * 5,
    '#!/bin/bash\n# Count the files\nfor i in *.txt; do\n\techo "$i"  # tab and blanks\ndone\n' * 5,
    "Grüße aus Köln, naïve café, 2048 + 7 = 2055.\n" * 3,
]
NASTY = [
    "\u2581", "\u2581\u2581", "\r", "\r\n", "\n", "\n\n", "\t", "\0", " ", "    ", "🎉", "👩\u200d👩\u200d👧", "\u200d", "\u200b",
    "<|endoftext|>", "<|pad|>", "<|fim_prefix|>", "<|spare_0|>", "<0x0A>", "<0xE2>", "<unk>", "<s>", "</s>", "\ufeff", "e\u0301",
    "\u0301", "שלום", "\u202e", "مرحبا", "ﬁ", "Å", "\u2028", "\x7f", "\x1b[0m", "\ufffd", "\U0010ffff", "for i", "#!/bin/bash",
]  # fmt: skip
KINDS = ("english", "bash")
relaxed = settings(deadline=None)  # a busy machine is no fault
nasty_text = st.lists(st.sampled_from(NASTY), max_size=12).map("".join)


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    """A small BPE tokenizer."""
    return train_tokenizer(SMALL_CORPUS, TokenizerConfig(), 500)


@pytest.fixture(scope="module")
def char() -> Tokenizer:
    """A tokenizer of characters."""
    return train_tokenizer(SMALL_CORPUS, TokenizerConfig(type="char"), 500)


def sample(sources: list[SourceConfig], training_bytes: int = 1_500_000) -> Iterator[str]:
    """Texts that train a tokenizer, drawn as `mlx-codegen tokenizer train` draws them."""
    phases = [PhaseConfig(sources=(source,), steps=1, learning_rate=1e-3) for source in sources]
    return training_texts(phases, training_bytes, seed=0)


@pytest.fixture(scope="module")
def bundled() -> Tokenizer:
    """8,000 pieces of the data that ships with the project."""
    sources = [SourceConfig.model_validate({"name": kind, "bundled": kind, "max_documents": 3000}) for kind in KINDS]
    return train_tokenizer(sample(sources), TokenizerConfig(), 8000)


@pytest.fixture(scope="module")
def realistic() -> Tokenizer:
    """8,000 pieces of real English and bash."""
    if not SHARED_DATA.is_dir():
        pytest.skip("no shared data here")
    sources = [SourceConfig(name=file.stem, path=str(file)) for file in sorted(SHARED_DATA.glob("*.jsonl"))]
    return train_tokenizer(
        sample([*sources, SourceConfig(name="bash", bundled="bash", max_documents=3000)]), TokenizerConfig(), 8000
    )


def assert_lossless(tokenizer: Tokenizer, text: str) -> None:
    """The text comes back, none of its ids is a control token, and the bytes of the ids add up."""
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not any(tokenizer.is_control(index) for index in ids)
    lengths = tokenizer.byte_lengths()
    assert sum(lengths[index] for index in ids) == len(text.encode())
    assert "".join(tokenizer.decode_stream(ids)) == text


@relaxed
@given(st.text())
def test_bpe_gives_every_string_back(bpe: Tokenizer, text: str) -> None:
    """decode(encode(x)) == x for every Unicode string, and none encodes to a control token."""
    assert_lossless(bpe, text)


@relaxed
@given(nasty_text)
@example("".join(NASTY))
@example("\u2581<|endoftext|>\u2581")
@example("trailing blanks   ")
def test_bpe_gives_nasty_strings_back(bpe: Tokenizer, text: str) -> None:
    """The same for what tokenizers stumble over, in any order."""
    assert_lossless(bpe, text)


@relaxed
@given(st.text() | nasty_text)
@example("".join(NASTY))
def test_char_gives_every_string_back(char: Tokenizer, text: str) -> None:
    """The character tokenizer is as lossless."""
    assert_lossless(char, text)


@relaxed
@given(nasty_text)
def test_realistic_vocabulary_gives_nasty_strings_back(bundled: Tokenizer, text: str) -> None:
    """With 8,000 pieces there are long merges to go wrong."""
    assert_lossless(bundled, text)


@pytest.mark.parametrize("type", ["bpe", "char"])
@pytest.mark.parametrize("corpus", ["abc\n" * 50, "x\ty" * 10, "-" * 5000, "你好世界" * 100])
def test_corpus_without_blanks_still_keeps_blanks(type: str, corpus: str) -> None:
    """A blank that training never saw must not come back as U+2581, SentencePiece's name for it."""
    tokenizer = train_tokenizer([corpus], TokenizerConfig.model_validate({"type": type}), 500)
    assert_lossless(tokenizer, " a  b \u2581 c ")


@pytest.mark.parametrize("name", CONTROL_TOKENS)
def test_the_name_of_a_control_token_is_plain_text(bpe: Tokenizer, name: str) -> None:
    """Text that spells a control token gets ordinary pieces: a document cannot end itself."""
    control = next(index for index in range(bpe.vocab_size) if bpe.piece(index) == name and bpe.is_control(index))
    assert control not in bpe.encode(f"a {name} b") and control not in bpe.encode(name)
    assert bpe.decode([control]) == "" and bpe.decode([control], show_control=True) == name


def test_unknown_token_stands_for_no_text(bpe: Tokenizer) -> None:
    """Everything falls back to bytes, so the unknown piece never appears; it decodes to nothing."""
    assert bpe.piece(0) == "<unk>" and bpe.is_control(0)
    assert 0 not in bpe.encode("<unk> \U0001f9ff")


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="no shared data here")
@pytest.mark.parametrize("name", ["tinystories", "childrens_books", "nl2bash", "tldr"])
def test_real_files_come_back(realistic: Tokenizer, name: str) -> None:
    """Every document of the real data survives, tokenised in one batch as preparation does it."""
    documents = list(read_documents(SourceConfig(name=name, path=str(SHARED_DATA / f"{name}.jsonl"))))
    assert len(documents) > 500
    for document, ids in zip(documents, realistic.encode_batch(documents, num_threads=2), strict=True):
        assert realistic.decode(ids) == document


def test_bundled_documents_come_back(bundled: Tokenizer) -> None:
    """So does the data that ships, for both languages."""
    for kind in KINDS:
        documents = read_documents(SourceConfig.model_validate({"name": kind, "bundled": kind}))
        result = measure(bundled, islice(documents, 300))
        assert result.documents == 300 and result.failures == 0


def test_measurement_counts_what_it_reads(char: Tokenizer) -> None:
    """Characters, tokens and used pieces of a report are those of the documents."""
    result = measure(char, ["abba", "a"])
    assert (result.documents, result.characters, result.tokens, len(result.used)) == (2, 5, 5, 2)


@pytest.mark.parametrize("idiom", ["#!/bin/bash", "for i"])
def test_idioms_are_single_pieces(idiom: str, bundled: Tokenizer) -> None:
    """Pieces may span words: what every script says costs one token."""
    assert len(bundled.encode(idiom)) == 1
    assert bundled.decode(bundled.encode(f"\n{idiom} in")[1:2]) == idiom


@pytest.mark.parametrize("idiom", ["#!/bin/bash", "for i"])
def test_idioms_are_single_pieces_on_real_data(idiom: str, realistic: Tokenizer) -> None:
    """The same on a corpus in which English outweighs bash."""
    assert len(realistic.encode(idiom)) == 1


def test_vocabulary_is_as_large_as_asked_for(bundled: Tokenizer, realistic: Tokenizer) -> None:
    """A corpus that is large enough yields exactly the pieces asked for, each of them a different text."""
    for tokenizer in (bundled, realistic):
        assert tokenizer.vocab_size == 8000
        assert len({tokenizer.piece(index) for index in range(8000)}) == 8000


def test_digits_stay_single(bundled: Tokenizer) -> None:
    """Numbers are spelled digit by digit, so that 2048 and 2049 look alike to the model."""
    assert [bundled.piece(index) for index in bundled.encode("2048")] == list("2048")


@pytest.mark.parametrize(("type", "at_most"), [("bpe", 8000), ("char", 384)])
def test_small_corpus_gets_the_largest_vocabulary_it_carries(type: str, at_most: int) -> None:
    """A corpus too small for the pieces asked for yields fewer instead of an error, and stays lossless."""
    tokenizer = train_tokenizer(["echo hi\n" * 30], TokenizerConfig.model_validate({"type": type}), at_most)
    assert 256 < tokenizer.vocab_size < at_most
    assert_lossless(tokenizer, "echo hi\nÄ quite different text")


def test_character_vocabulary_keeps_to_its_limit() -> None:
    """A corpus with more characters than pieces spells the rare ones in bytes instead of growing the model."""
    rare = "".join(chr(0x4E00 + number) for number in range(3000))
    tokenizer = train_tokenizer([rare + "the cat sat on the mat " * 200], TokenizerConfig(type="char"), 384)
    assert tokenizer.vocab_size == 384
    assert_lossless(tokenizer, rare)


@pytest.mark.parametrize("corpus", [[], [""], ["\n\n", "  \t "], ["\0"], ["\u2581"]])
def test_empty_corpus_is_refused(corpus: list[str]) -> None:
    """Without a single visible character there is nothing to learn."""
    with pytest.raises(UserError, match="the corpus is empty"):
        train_tokenizer(corpus, TokenizerConfig(), 8000)


@pytest.mark.parametrize("type", ["bpe", "char"])
@pytest.mark.parametrize("size", [-1, 0, 383])
def test_vocabulary_without_room_for_bytes_is_refused(type: str, size: int) -> None:
    """256 bytes and the control tokens must fit, or no text is safe."""
    with pytest.raises(UserError, match=r"vocab_size -?\d+ is too small"):
        train_tokenizer(SMALL_CORPUS, TokenizerConfig.model_validate({"type": type}), size)


def test_vocabulary_smaller_than_the_alphabet_is_refused_in_words() -> None:
    """SentencePiece's own complaint reaches the person as one UserError."""
    with pytest.raises(UserError, match="Vocabulary size is smaller"):
        train_tokenizer(["".join(chr(0x4E00 + number) for number in range(3000))], TokenizerConfig(), 500)


def test_damaged_model_is_refused(bpe: Tokenizer, tmp_path: Path) -> None:
    """An empty, cut, altered or foreign file is told from a tokenizer, by name."""
    good = bpe.model_bytes
    altered = good.replace(b"<0xFF>", b"<0x\xff\xff>")
    assert altered != good
    for content in (b"", b"no model at all", good[:1], good[: len(good) // 2], good[:-1], altered):
        file = tmp_path / "tokenizer.model"
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"tokenizer\.model: not a SentencePiece model, or damaged"):
            Tokenizer.load(file)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "has no <|endoftext|> token"),
        ({"eos_piece": END_OF_TEXT}, "has no <|pad|> token"),
        ({"eos_piece": END_OF_TEXT, "control_symbols": [PADDING]}, "does not give every text back"),
        ({"eos_piece": END_OF_TEXT, "control_symbols": [PADDING], "byte_fallback": True}, "does not give every text back"),
        ({"eos_piece": END_OF_TEXT, "user_defined_symbols": [PADDING]}, "has no <|pad|> token"),
    ],
)
def test_foreign_model_is_refused(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    """A SentencePiece model without our control tokens, or one that changes text, would ruin training unseen."""
    output = io.BytesIO()
    corpus = iter(["the cat sat on the mat\n" * 20])
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=corpus, model_writer=output, vocab_size=400, hard_vocab_limit=False, model_type="bpe", minloglevel=2,
        **options,
    )  # fmt: skip
    (tmp_path / "foreign.model").write_bytes(output.getvalue())
    with pytest.raises(UserError, match=re.escape(words)):
        Tokenizer.load(tmp_path / "foreign.model")


def test_missing_tokenizer_says_how_to_get_one(tmp_path: Path) -> None:
    """A path without a tokenizer names the command that makes one."""
    with pytest.raises(UserError, match="mlx-codegen tokenizer train"):
        Tokenizer.load(tmp_path / "none.model")
    with pytest.raises(UserError, match=r"no tokenizer at .*tokenizer\.model"):
        Tokenizer.load(tmp_path)


def test_lone_surrogate_is_refused(bpe: Tokenizer) -> None:
    """Half a character is no Unicode text: one line instead of a codec's traceback."""
    for text in ("\ud800", "a\udfffb", "\u2581\ud800"):
        with pytest.raises(UserError, match="lone surrogate"):
            bpe.encode(text)


@relaxed
@given(nasty_text)
def test_stream_never_shows_half_a_character(bpe: Tokenizer, text: str) -> None:
    """Each part of a stream is whole characters: U+FFFD appears only where the text has it."""
    parts = list(bpe.decode_stream(bpe.encode(text)))
    assert "".join(parts).count("\ufffd") == text.count("\ufffd")


def test_stream_waits_for_the_last_byte_of_a_character(bpe: Tokenizer) -> None:
    """A character of four byte tokens appears once, with its last; one cut off by the end becomes U+FFFD, as in decode."""
    ids = bpe.encode("🎉")
    assert len(ids) == 4 and list(bpe.decode_stream(ids)) == ["", "", "", "🎉", ""]
    assert "".join(bpe.decode_stream(ids[:2])) == bpe.decode(ids[:2]) == "\ufffd"


@relaxed
@given(st.lists(st.integers(0, 499), max_size=20))
def test_stream_equals_decode_for_any_ids(bpe: Tokenizer, ids: list[int]) -> None:
    """A model may put out any ids; what streams past is what the finished text says."""
    ids = [index % bpe.vocab_size for index in ids]
    assert "".join(bpe.decode_stream(ids)) == bpe.decode(ids)


def test_pieces_are_readable(bpe: Tokenizer) -> None:
    """A piece is its text, `<0x..>` for a lone byte, and a name for a control token."""
    assert [bpe.piece(index) for index in bpe.encode("\n\t🎉")] == ["\n", "\t", "<0xF0>", "<0x9F>", "<0x8E>", "<0x89>"]
    assert bpe.piece(bpe.end_of_text_id) == END_OF_TEXT and bpe.piece(bpe.padding_id) == PADDING
    assert (bpe.end_of_text_id, bpe.padding_id) == (1, 2)  # SentencePiece's own places, where other tools look


def test_byte_lengths_cover_the_vocabulary(bpe: Tokenizer) -> None:
    """Bits per byte need the bytes of every id; only tokens without text have none."""
    lengths = bpe.byte_lengths()
    assert len(lengths) == bpe.vocab_size
    without_text = [bpe.piece(index) for index, length in enumerate(lengths) if length == 0]
    assert set(without_text) == {"<unk>", *CONTROL_TOKENS}


@pytest.mark.parametrize("extra", ["", "\u2581"])
def test_batch_on_threads_equals_one_by_one(bpe: Tokenizer, extra: str) -> None:
    """Threads change nothing, also where a text holds U+2581 and goes another way."""
    texts = [f"{part} {number}{extra if number % 7 == 0 else ''}" for number in range(50) for part in NASTY]
    assert bpe.encode_batch(texts, num_threads=4) == [bpe.encode(text) for text in texts]
    assert bpe.encode_batch([]) == []


def test_same_corpus_gives_the_same_tokenizer_in_another_process(bpe: Tokenizer) -> None:
    """The hash names a tokenizer in token files and checkpoints: training again, elsewhere, must give it again."""
    script = (
        "import json, sys; from mlx_codegen.config import TokenizerConfig; from mlx_codegen.tokenizer import train_tokenizer;"
        "print(train_tokenizer(json.load(sys.stdin), TokenizerConfig(), 500).hash)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, input=json.dumps(SMALL_CORPUS), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == bpe.hash and re.fullmatch(r"[0-9a-f]{16}", bpe.hash)


def test_hash_differs_between_tokenizers_and_survives_disk(bpe: Tokenizer, char: Tokenizer, tmp_path: Path) -> None:
    """Two tokenizers never share a name; one that was saved keeps its own."""
    assert bpe.hash != char.hash
    (tmp_path / "tokenizer.model").write_bytes(bpe.model_bytes)
    assert Tokenizer.load(tmp_path).hash == bpe.hash


def test_training_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """The library never prints; SentencePiece's C++ code would."""
    train_tokenizer(SMALL_CORPUS, TokenizerConfig(), 400)
    assert capfd.readouterr() == ("", "")


def test_commands_train_show_and_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The three commands work on a person's own files: too small a corpus is told, pieces are listed, failures counted."""
    (tmp_path / "mine.txt").write_text("".join(SMALL_CORPUS), encoding="utf-8")
    model = tmp_path / "new" / "tokenizer.model"
    assert run(["tokenizer", "train", str(model), "--data", str(tmp_path / "mine.txt")]) == 0
    trained = capsys.readouterr()
    size = Tokenizer.load(model).vocab_size
    assert f"the corpus carries {size} of the 8000 pieces asked for" in trained.err
    assert f"{size} pieces, hash {Tokenizer.load(model).hash}" in trained.out
    assert [file.name for file in model.parent.iterdir()] == ["tokenizer.model"]

    assert run(["tokenizer", "show", "cat\u2581\n", "--tokenizer", str(model)]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert Tokenizer.load(model).decode(int(index) for index, _ in rows) == "cat\u2581\n"
    assert [piece for _, piece in rows][-4:] == ["'<0xE2>'", "'<0x96>'", "'<0x81>'", "'\\n'"]
    assert run(["tokenizer", "show", "--tokenizer", str(model.parent)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == size

    assert run(["tokenizer", "report", "--data", str(tmp_path / "mine.txt"), "--tokenizer", str(model)]) == 0
    report = capsys.readouterr().out
    assert "mine" in report and "unused here" in report and Tokenizer.load(model).hash in report


def test_report_measures_the_bundled_data_by_default(
    bundled: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without --data the report covers English, scripts and commands, each with its ratio to GPT-2's characters a token."""
    (tmp_path / "tokenizer.model").write_bytes(bundled.model_bytes)
    assert run(["tokenizer", "report", "--tokenizer", str(tmp_path), "--max-documents", "200"]) == 0
    report = capsys.readouterr().out
    heading, rows = report.split("documents")[0].split()[:3], dict(re.findall(r"^ *(\S.*?)  +([\d ].*)$", report, re.M))
    assert heading == ["english", "scripts", "commands"] and "most frequent" not in report
    assert rows["documents"].split() == ["200"] * 3 and rows["failures"].split() == ["0"] * 3
    columns = zip(
        *(rows[name].replace(",", "").split() for name in ("characters", "tokens", "chars/token", "× GPT-2")), strict=True
    )
    for characters, tokens, ratio, against_gpt2 in columns:
        exact = int(characters) / int(tokens)
        assert (ratio, against_gpt2) == (f"{exact:.2f}", f"{exact / 4:.2f}")


def test_report_of_bytes_and_pieces(bundled: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What no piece spells is counted as single bytes; frequent and long pieces are those of the text, blanks visible."""
    (tmp_path / "tokenizer.model").write_bytes(bundled.model_bytes)
    (tmp_path / "greek.txt").write_text("\u03b1\u03b2\n" * 10)
    arguments = ["tokenizer", "report", "--tokenizer", str(tmp_path), "--data", str(tmp_path / "greek.txt"), "--pieces", "3"]
    assert run(arguments) == 0
    report = capsys.readouterr().out
    assert re.search(r"single bytes +80\.00%", report), "two letters of two bytes for every line end"
    assert re.search(r"bytes/token +1\.00", report)
    assert "greek, most frequent: <0xCE>" in report and "greek, longest: \\n\n" in report
    result = measure(bundled, ["echo echo echo echo\n", "for i in 1 2"])
    assert most_frequent(result, bundled, 1) == [" echo"] and longest(result, bundled, 2) == [" echo", "for i"]
    assert result.byte_tokens == 0 and result.text_bytes == result.characters == 32


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "out.model", "--data", "none.txt"], "no file or folder none.txt"),
        (["train", "out.model", "--data", "empty.txt"], "the corpus is empty"),
        (["train", "out.model", "--data", "text.txt", "--vocab-size", "100"], "vocab_size 100 is too small"),
        (["train", "out.model", "--data", "text.txt", "--vocab-size", "65537"], "65536"),
        (["show", "text", "--tokenizer", "text.txt"], "not a SentencePiece model"),
        (["report", "--tokenizer", "nowhere"], "no tokenizer at nowhere"),
    ],
)
def test_command_mistakes_get_one_line(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each mistake at the command line is one `error:` line with status 2, and leaves no file behind."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "text.txt").write_text("hello hello\n")
    assert run(["tokenizer", *arguments]) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1 and words in line
    assert sorted(file.name for file in tmp_path.iterdir()) == ["empty.txt", "text.txt"]
