"""The bundled English: grammatical as far as a test can see, varied, and the same for the same seed."""

import os
import re
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlx_codegen.data.sources import BUNDLED_STORIES
from mlx_codegen.data.stories import story_documents
from mlx_codegen.errors import UserError

FOLDER = Path(__file__).parents[1] / "data" / "english"
COUNT = BUNDLED_STORIES
END_OF_SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[.!?][\"”])\s+")

WORDS: dict[str, Any] = {
    "people": {"child": [{"they": "she", "them": "her", "their": "her", "names": ["Mia"]}]},
    "lists": {"noun": ["apple", "ball"], "pair": ["{noun} and {noun}"]},
}
PLOTS: dict[str, Any] = {
    "plots": {"one": {"let": {"hero": "child"}, "steps": ["{hero} has {a noun}.", ["{^hero.they} sleeps.", ""]]}}
}


@pytest.fixture(scope="module")
def documents() -> list[str]:
    """What a run without further wishes is trained on."""
    return list(story_documents(FOLDER, COUNT, seed=0))


def write_grammar(folder: Path, words: dict[str, Any], plots: dict[str, Any]) -> None:
    """A small folder of patterns."""
    (folder / "words.yaml").write_text(yaml.safe_dump(words, sort_keys=False))
    (folder / "plots.yaml").write_text(yaml.safe_dump(plots, sort_keys=False))


def test_documents_are_distinct(documents: list[str]) -> None:
    """No text comes twice, and two texts rarely share more than their plot."""
    assert len(set(documents)) == len(documents) == COUNT
    openings = Counter(" ".join(text.split()[:12]) for text in documents)
    assert openings.most_common(1)[0][1] < COUNT * 0.02


def test_documents_have_80_to_200_words(documents: list[str]) -> None:
    """Long enough for a beginning and an end, short enough for the smallest context."""
    lengths = [len(text.split()) for text in documents]
    assert min(lengths) >= 80 and max(lengths) <= 200


def test_corpus_has_a_million_words(documents: list[str]) -> None:
    """Enough to learn the language from, without any download."""
    assert sum(len(text.split()) for text in documents) >= 1_000_000


def test_vocabulary_is_wide(documents: list[str]) -> None:
    """At least 5,000 different words, without regard to case, and hardly any that is met only once."""
    words = Counter(word for text in documents for word in re.findall(r"[a-z]+(?:'[a-z]+)?", text.lower()))
    assert len(words) >= 5000
    assert sum(count > 2 for count in words.values()) >= 5000


def test_no_sentence_is_learned_by_heart(documents: list[str]) -> None:
    """A sentence that stood in every tenth text would be memorized instead of understood."""
    sentences = Counter(s for text in documents for s in set(END_OF_SENTENCE.split(text.strip())))
    sentence, count = sentences.most_common(1)[0]
    assert count <= COUNT * 0.02, sentence


def test_readme_states_what_is_here(documents: list[str]) -> None:
    """The counts of plots in data/README.md are those of the files, and its measures those of the corpus."""
    plots = {path.stem: len(yaml.safe_load(path.read_text()).get("plots", ())) for path in FOLDER.glob("*.yaml")}
    stories = sum(count for name, count in plots.items() if name.startswith("stories"))
    explanations = sum(count for name, count in plots.items() if name.startswith("explanations"))
    readme = (FOLDER.parent / "README.md").read_text(encoding="utf-8")
    assert f"{stories} story plots, {explanations} explanations of the shell and {plots['everyday']} kinds of facts" in readme
    characters, words = (sum(map(len, parts)) / COUNT for parts in (documents, [text.split() for text in documents]))
    assert f"| English | {COUNT:,} | {characters:.0f} | {words:.0f} |" in readme
    assert stories >= 40 and explanations >= 60


def test_sentences_are_well_formed(documents: list[str]) -> None:
    """Capital letters after a full stop, an before a vowel, no doubled word or blank, no hole left over."""
    for text in documents:
        assert text[0].isupper() or text[0] == '"', text
        assert re.search(r'[.!?]"?\n$', text), text
        assert not re.search(r"[a-z][.!?] [a-z]", text), text
        assert not re.search(r"\b[Aa] [aeio]|\b[Aa]n [^aeiouhAEIO]", text), text
        assert not re.search(r"\b(\w+) \1\b", text, re.IGNORECASE), text
        assert "  " not in text and not re.search(r"[{}]", text), text
        assert text.count('"') % 2 == 0, text


def test_same_seed_same_documents_in_every_process() -> None:
    """A seed names a data set: Python's hash() must play no part."""
    code = (
        "import sys, hashlib, pathlib; from mlx_codegen.data.stories import story_documents;"
        "print(hashlib.sha256(''.join(story_documents(pathlib.Path(sys.argv[1]), 50, 7)).encode()).hexdigest())"
    )
    outputs = set()
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(FOLDER.parents[1])}
        command = [sys.executable, "-c", code, str(FOLDER)]
        outputs.add(subprocess.run(command, env=environment, capture_output=True, check=True, timeout=60).stdout)
    assert len(outputs) == 1
    assert list(story_documents(FOLDER, 20, 1)) != list(story_documents(FOLDER, 20, 2))


def test_a_smaller_count_is_the_beginning_of_a_larger_one(documents: list[str]) -> None:
    """Growing the data set keeps what was there."""
    assert list(story_documents(FOLDER, 30, seed=0)) == documents[:30]
    assert list(islice(story_documents(FOLDER, 10**9, seed=0), 2)) == documents[:2]


def test_pronouns_and_articles_follow_the_cast(tmp_path: Path) -> None:
    """She stays she, and a vowel takes an."""
    write_grammar(tmp_path, WORDS, PLOTS)
    expected = {f"Mia has {thing}.{rest}\n" for thing in ("an apple", "a ball") for rest in (" She sleeps.", "")}
    assert set(story_documents(tmp_path, 4, seed=0)) == expected


def test_a_row_of_a_table_stays_together(tmp_path: Path) -> None:
    """The boat that has oars is rowed; a table may stand beside the plots that use it, and its steps may be a text."""
    steps = "{hero} has {a craft.kind}.\n\n¶ {^hero.they} {craft.moves} it.\n-\n"
    table = "kind | moves\nairship | steers\ncanoe | paddles\n"
    one = {"let": {"hero": "child", "craft": "craft"}, "steps": steps}
    write_grammar(tmp_path, WORDS, {"tables": {"craft": table}, "plots": {"one": one}})
    assert set(story_documents(tmp_path, 4, seed=0)) == {
        "Mia has an airship.\n",
        "Mia has an airship.\nShe steers it.\n",
        "Mia has a canoe.\n",
        "Mia has a canoe.\nShe paddles it.\n",
    }


@pytest.mark.parametrize("words", ["an hour", "a unicorn", "an umbrella", "a useful map", "an honest goat", "a ewe", "an egg"])
def test_an_is_chosen_by_sound(words: str, tmp_path: Path) -> None:
    """It is the sound that counts and not the letter."""
    article_free = words.split(maxsplit=1)[1]
    write_grammar(tmp_path, {**WORDS, "lists": {"noun": [article_free]}}, PLOTS)
    assert next(story_documents(tmp_path, 1, seed=0)).startswith(f"Mia has {words}.")


def test_patterns_that_run_out_are_reported(tmp_path: Path) -> None:
    """Four possible texts cannot become five: an error, not an endless loop."""
    write_grammar(tmp_path, WORDS, PLOTS)
    with pytest.raises(UserError, match="no more than about 4 different documents"):
        list(story_documents(tmp_path, 5, seed=0))


def plot(**change: object) -> dict[str, Any]:
    """The small plot with one key changed."""
    return {"plots": {"one": {**PLOTS["plots"]["one"], **change}}}


BAD: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "unknown key": (WORDS, plot(mood="dark"), "plots.yaml: plots.one.mood: Extra inputs are not permitted"),
    "unknown word": (WORDS, plot(steps=["{hero} sees {moon}."]), "plots.yaml: plots.one.steps: {moon} is neither"),
    "unknown source": (WORDS, plot(let={"hero": "king"}), "plots.yaml: plots.one.let.hero: words.yaml has no king"),
    "unused member": (WORDS, plot(steps=["{a noun}."]), "plots.yaml: plots.one.let.hero: no step uses it"),
    "pronoun of a thing": (
        WORDS,
        plot(steps=["{hero}: {noun.they}."]),
        "plots.yaml: plots.one.steps: {noun.they} asks",
    ),
    "left-over brace": (WORDS, plot(steps=["{hero} {"]), "plots.yaml: plots.one.steps: a brace is left over"),
    "no plots": (WORDS, {"plots": {}}, "plots.yaml: plots: Dictionary should have at least 1 item"),
    "list in a circle": ({**WORDS, "lists": {"noun": ["{noun}"]}}, PLOTS, "words.yaml: lists.noun: {noun} is neither"),
    "name taken": ({**WORDS, "lists": {"child": ["x"]}}, PLOTS, "words.yaml: lists.child: is empty, or the name is taken"),
    "short row": (
        WORDS,
        {"tables": {"boat": "kind | oars\ncanoe"}, **PLOTS},
        "plots.yaml: tables.boat: expected 2 filled fields in 'canoe'",
    ),
    "unknown field": (
        {**WORDS, "tables": {"boat": "kind\ncanoe"}},
        plot(let={"boat": "boat"}, steps=["{boat.sail}."]),
        "plots.yaml: plots.one.steps: {boat.sail} asks for sail, which boat does not have",
    ),
    "empty list": ({**WORDS, "lists": {"noun": []}}, PLOTS, "words.yaml: lists.noun: is empty"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_file_is_one_line_with_file_and_key(case: str, tmp_path: Path) -> None:
    """A mistake in the patterns is found before the first document, and said where it is."""
    words, plots, message = BAD[case]
    write_grammar(tmp_path, words, plots)
    with pytest.raises(UserError) as caught:
        next(story_documents(tmp_path, 1, seed=0))
    assert str(caught.value).startswith(f"{tmp_path}/{message}")
    assert "\n" not in str(caught.value)


def test_missing_and_broken_files_are_one_line(tmp_path: Path) -> None:
    """So are files that are not there or are not YAML."""
    with pytest.raises(UserError, match=r"words\.yaml: cannot be read"):
        next(story_documents(tmp_path, 1, seed=0))
    write_grammar(tmp_path, WORDS, PLOTS)
    (tmp_path / "plots.yaml").write_text("plots: [")
    with pytest.raises(UserError, match=r"plots\.yaml: not YAML: [^\n]+$"):
        next(story_documents(tmp_path, 1, seed=0))
