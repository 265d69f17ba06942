"""What was trained on is known by its hashes: copies are found, overlaps are reported, and ignorance is admitted."""

import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_run import TrainedRun, phase_settings, tiny_tokenizer

import mlx_codegen
from mlx_codegen.config import SourceConfig
from mlx_codegen.data.prepare import manifest_checksum, prepare_phase, read_manifest
from mlx_codegen.data.sources import read_documents, read_split_documents
from mlx_codegen.data.tasks import load_tasks
from mlx_codegen.data.text_hashes import (
    KINDS,
    HashWriter,
    checksum,
    hash_file,
    holds,
    normal_prompt,
    open_hashes,
    possible_prompts,
    sort_hashes,
    split_document,
    text_hash,
)
from mlx_codegen.evaluation.context import Context, Settings
from mlx_codegen.evaluation.figures import PartResult
from mlx_codegen.evaluation.samples import Sample, held_out_renderings
from mlx_codegen.evaluation.syntax import measure_syntax
from mlx_codegen.evaluation.training_texts import TrainingTexts, add_copies, training_texts
from mlx_codegen.generation.engine import Completion
from mlx_codegen.hub.export import export_model
from mlx_codegen.training.run_folder import RunFolder

TASKS = load_tasks(Path(__file__).parents[1] / "data" / "bash")
RENDERING = held_out_renderings(TASKS[:20], 1, 1, seed=0)[0]
BASH = SourceConfig(name="bash", bundled="bash", max_documents=150)


@cache
def training_documents() -> list[str]:
    """What the code phase of the tiny run trains on."""
    return [document.text for document in read_split_documents(BASH, seed=3) if document.split == "train"]


def known(run: RunFolder | Path) -> TrainingTexts:
    return training_texts(mlx_codegen.load(run if isinstance(run, Path) else run.path))


def sample_of(document: str, prompt: str = "") -> Sample:
    """A model that wrote this document, whatever it was asked."""
    return Sample(replace(RENDERING, prompt=prompt or RENDERING.prompt), False, Completion("", document, 1, True, -1.0))


@given(st.lists(st.integers(0, 2**64 - 1), max_size=30), st.integers(0, 2**64 - 1))
@settings(max_examples=50, deadline=None)
def test_a_number_is_found_if_it_is_there(numbers: list[int], other: int) -> None:
    """Against a set, the largest numbers included."""
    array = np.sort(np.array(numbers, "<u8"))
    for number in [*numbers, other, 0, 2**64 - 1]:
        assert holds(array, number) == (number in set(numbers))


def test_requests_and_answers_of_documents() -> None:
    """A shebang belongs to neither; a story has no request."""
    assert split_document("#!/bin/bash\n# Ask\nls\n") == (["Ask"], "ls\n") == split_document("# Ask\nls\n")
    assert split_document("Once upon a time\n# no\n") == ([], "Once upon a time\n# no\n")
    assert possible_prompts("# List  Files.\n# as a table\nls\n") == ["list files", "list files. as a table"]
    assert possible_prompts("#!/bin/sh\nls\n") == []
    assert normal_prompt("List the\tFILES .") != normal_prompt("list the file")
    assert normal_prompt(" List the\tFILES. ") == normal_prompt("list the files")


def test_prepared_data_has_hashes_of_what_is_in_its_token_files(trained_run: TrainedRun) -> None:
    """Every training document of either phase, no other, listed with checksum."""
    folder = trained_run.folder
    tokenizer, expected = tiny_tokenizer(folder), training_documents()
    described = read_manifest(folder.data("code"))["training_hashes"]
    for kind in KINDS:
        numbers = open_hashes(hash_file(folder.data("code"), kind))
        assert (len(numbers), checksum(numbers)) == (described[kind]["count"], described[kind]["sha256"])
        assert np.all(numbers[:-1] <= numbers[1:])
    numbers = open_hashes(hash_file(folder.data("code"), "documents"))
    assert sorted(numbers.tolist()) == sorted(map(text_hash, expected))
    language = open_hashes(hash_file(folder.data("language"), "documents"))
    counts = read_manifest(folder.data("language"))["sources"][0]["counts"]
    assert len(language) == counts["train"]["documents"] > 0 and tokenizer.vocab_size > 0


def test_held_out_texts_are_new_and_trained_ones_are_not(trained_run: TrainedRun) -> None:
    """With another case, white space and stop, too."""
    texts = known(trained_run.folder)
    assert texts and "training documents" in texts.note
    for document in training_documents()[:20]:
        (prompt, *_), answer = split_document(document)
        assert texts.has_document(document) and texts.has_answer(f"# Another request\n{answer}")
        assert texts.has_prompt(prompt) and texts.has_prompt(prompt.upper().rstrip(".") + " .".strip())
        assert texts.has_answer("# Asked\n  " + answer.replace("\n", "\n\n"))
        assert not texts.has_document(document + "true\n") and not texts.has_answer(document + "true\n")
    held_out = held_out_renderings(TASKS[::5], 1, 1, seed=0)
    assert not [r.prompt for r in held_out if texts.has_prompt(r.prompt)]
    assert not texts.has_answer("# Only a request\n"), "nothing is no copy"
    story = next(iter(read_documents(SourceConfig(name="english", bundled="english", max_documents=150), 3)))
    assert texts.has_document(story) or not texts.has_answer(story), "the language phase counts, too"


@pytest.mark.parametrize("fault", ["older", "missing", "damaged"])
def test_without_hash_files_the_token_files_are_read(trained_copy: RunFolder, fault: str) -> None:
    """Data prepared before there were such files is checked all the same, and a damaged file is not believed."""
    whole, file = known(trained_copy), hash_file(trained_copy.data("code"), "prompts")
    expected = [{kind: hashes[kind].copy() for kind in KINDS} for hashes in whole.phases]  # the files are mapped
    if fault == "older":
        manifest = trained_copy.data("code") / "manifest.json"
        values = json.loads(manifest.read_text())
        del values["training_hashes"], values["checksum"]
        manifest.write_text(json.dumps(values))
    elif fault == "missing":
        file.unlink()
    else:
        file.write_bytes(bytes(len(file.read_bytes())))
    read = known(trained_copy)
    assert read.note == whole.note
    for ours, theirs in zip(read.phases, expected, strict=True):
        assert all(np.array_equal(ours[kind], theirs[kind]) for kind in KINDS)


def test_what_is_not_known_is_said(trained_copy: RunFolder, tmp_path: Path) -> None:
    """Exported models, data that was prepared anew, data that is gone: a note, and no figure that would flatter."""
    export_model(trained_copy.checkpoint("code", "best"), tmp_path / "exported")
    assert not known(tmp_path / "exported") and "only a run's own checkpoint" in known(tmp_path / "exported").note
    manifest = trained_copy.data("code") / "manifest.json"
    values = json.loads(manifest.read_text())
    values["fingerprint"] = "0" + values["fingerprint"]
    manifest.write_text(json.dumps(values | {"checksum": manifest_checksum(values)}))
    assert not known(trained_copy) and "prepared anew" in known(trained_copy).note
    shutil.rmtree(trained_copy.data("code"))
    texts = known(trained_copy)
    assert not texts and "could not be checked" in texts.note
    result = PartResult("syntax", "")
    add_copies(result, [sample_of(training_documents()[0])], texts)
    assert result.figures == {} and result.notes == [texts.note]


def test_a_language_model_knows_no_code(trained_run: TrainedRun) -> None:
    """The language phase's checkpoint was not trained on what came after it."""
    texts = known(trained_run.folder.checkpoint("language", "best"))
    assert texts and len(texts.phases) == 1
    assert not any(map(texts.has_document, training_documents()))


def test_copies_and_overlap_are_figures(trained_run: TrainedRun) -> None:
    """A model that recites training is found out; one that repeats its prompt copies nothing."""
    texts, documents = known(trained_run.folder), training_documents()[:10]
    recited, asked = PartResult("syntax", ""), split_document(documents[0])[0][0]
    add_copies(recited, [sample_of(document) for document in documents], texts)
    assert recited.figures["copied documents"].value == 1.0 and recited.figures["prompts that training had"].value == 0.0
    copied = [figure.value for name, figure in recited.figures.items() if name.startswith("copied answers")]
    assert copied == [1.0] and recited.examples[0]["text"] in documents
    silent = PartResult("syntax", "")
    add_copies(silent, [sample_of("# What was asked\n", prompt=asked)] * 3, texts)
    assert [f.value for name, f in silent.figures.items() if name.startswith("copied")] == [0.0, 0.0] and not silent.examples
    assert silent.figures["prompts that training had"].value == 1.0, "an overlap is reported"
    assert repr(asked) in " ".join(silent.notes)


def test_the_syntax_part_has_them(trained_run: TrainedRun) -> None:
    """From a model's own texts."""
    context = Context(mlx_codegen.load(trained_run.folder.path), TASKS, Settings(samples=1, max_tokens=4))
    context.renderings = sorted(held_out_renderings(TASKS[::20], 1, 1, seed=0), key=lambda r: len(r.prompt))[:3]
    result = measure_syntax(context)
    assert result.figures["prompts that training had"].samples == 3 and context.training_texts.note in result.notes
    assert result.figures["copied documents"].value == 0.0


def test_versions_with_fresh_values_count_as_written(prepared_run: Path, tmp_path: Path) -> None:
    """The requests that training read, not those of the file; originals that are held out have none in training."""
    pairs = [
        (f"Show the file notes{number}.txt in /srv/data{number}", f"cat /srv/data{number}/notes{number}.txt")
        for number in range(60)
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps({"prompt": prompt, "command": command}) + "\n" for prompt, command in pairs))
    source = SourceConfig(name="pairs", path=str(file), fresh_values=1.0, versions=3)
    phase = phase_settings(sources=(source,), validation_fraction=0.3)
    manifest = prepare_phase(tmp_path / "data", phase, tiny_tokenizer(RunFolder(prepared_run)), seed=1)
    prompts = open_hashes(hash_file(tmp_path / "data", "prompts"))
    written = [document for document in read_split_documents(source, 1) if document.origin is not None]
    trained = [holds(prompts, text_hash(possible_prompts(document.text)[0])) for document in written]
    assert len(prompts) == manifest["sources"][0]["counts"]["train"]["documents"] > 60
    by_original: dict[str, list[bool]] = {}
    for document, was_trained in zip(written, trained, strict=True):
        by_original.setdefault(str(document.origin), []).append(was_trained)
    assert {tuple(set(found)) for found in by_original.values()} == {(True,), (False,)}, "all versions of a pair, or none"


def test_hashes_of_nothing(tmp_path: Path) -> None:
    """A phase without requests has an empty file of them, which cannot be mapped into memory."""
    writer = HashWriter(tmp_path)
    writer.add("Once upon a time\n", text_hash("Once upon a time\n"))
    writer.close()
    assert [entry["count"] for entry in sort_hashes(tmp_path).values()] == [1, 1, 0]
    assert not holds(open_hashes(hash_file(tmp_path, "prompts")), 7)
