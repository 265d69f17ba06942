"""A checkpoint, config or manifest that is not as it was left is recognised, and the newest good checkpoint is used instead."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest
from fault_processes import Note, assert_same_run, files
from tiny_run import CODE_STEPS, LANGUAGE_STEPS, Recorder, TrainedRun, tiny_config

from mlx_codegen.checkpoint import load_checkpoint
from mlx_codegen.config import PHASES
from mlx_codegen.errors import UserError
from mlx_codegen.training.phases import train_run
from mlx_codegen.training.run_folder import RunFolder, saved_config

Damage = Callable[[RunFolder, Path], None]
STOP = 13  # in the code phase: `last` is of this step, `previous` of step 10


def interrupt(folder: RunFolder, phase: str, step: int) -> None:
    recorder = Recorder()
    assert train_run(folder, tiny_config(), PHASES, recorder, recorder.stop_at(phase, step)) == "interrupted"


def resume(folder: RunFolder) -> Recorder:
    recorder = Recorder()
    assert train_run(folder, saved_config(folder), PHASES, recorder, resume=True) == "finished"
    return recorder


def refused(folder: RunFolder) -> str:
    """The line that --resume ends with; nothing may change."""
    before = {file: file.read_bytes() for file in folder.path.rglob("*") if file.is_file()}
    with pytest.raises(UserError) as caught:
        train_run(folder, saved_config(folder), PHASES, Recorder(), resume=True)
    assert before == {file: file.read_bytes() for file in folder.path.rglob("*") if file.is_file()}
    assert "\n" not in str(caught.value)
    return str(caught.value)


def truncated(folder: RunFolder, file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def empty(folder: RunFolder, file: Path) -> None:
    file.write_bytes(b"")


def bit_flipped(folder: RunFolder, file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1000] ^= 1
    file.write_bytes(content)


def swapped_with_another_phase(folder: RunFolder, file: Path) -> None:
    shutil.copy(folder.checkpoint("language", "last"), file)


def swapped_with_best(folder: RunFolder, file: Path) -> None:
    shutil.copy(folder.checkpoint("code", "best"), file)


def foreign(folder: RunFolder, file: Path) -> None:
    mx.save_safetensors(str(file), {"weight": mx.zeros((4, 4))}, {"format": "pt"})


def _with_header(file: Path, change: Callable[[dict[str, dict[str, list[int]]]], None]) -> None:
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def larger_than_the_file(folder: RunFolder, file: Path) -> None:
    """The last array is said to end far behind the file's end: memory for it must not be asked for."""

    def change(header: dict[str, dict[str, list[int]]]) -> None:
        last = max((entry for name, entry in header.items() if name != "__metadata__"), key=lambda e: e["data_offsets"][1])
        last["data_offsets"][1] += 4 << 40
        last["shape"] = [(last["data_offsets"][1] - last["data_offsets"][0]) // 4]

    _with_header(file, change)


def overlapping(folder: RunFolder, file: Path) -> None:
    """Two arrays are said to be at one place."""

    def change(header: dict[str, dict[str, list[int]]]) -> None:
        names = [name for name in header if name != "__metadata__"]
        header[names[0]]["data_offsets"] = header[names[1]]["data_offsets"]

    _with_header(file, change)


def header_longer_than_the_file(folder: RunFolder, file: Path) -> None:
    file.write_bytes(struct.pack("<Q", 1 << 62) + file.read_bytes()[8:])


DAMAGES: list[Damage] = [
    truncated, empty, bit_flipped, swapped_with_another_phase, swapped_with_best, foreign, larger_than_the_file, overlapping,
    header_longer_than_the_file,
]  # fmt: skip


@pytest.fixture(scope="module")
def stopped_run(prepared_run: Path) -> RunFolder:
    """Interrupted in the code phase. To be copied, not changed."""
    folder = RunFolder(prepared_run.with_name("stopped"))
    shutil.copytree(prepared_run, folder.path)
    interrupt(folder, "code", STOP)
    return folder


@pytest.fixture
def stopped(stopped_run: RunFolder, tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "runs" / "tiny")
    shutil.copytree(stopped_run.path, folder.path)
    return folder


def put_aside(folder: RunFolder) -> None:
    """The damaged file, which is kept; everything else must be as in an unbroken run."""
    (aside,) = folder.path.rglob("*.damaged")
    assert aside == folder.checkpoint("code", "last").with_name("last.safetensors.damaged")
    aside.unlink()


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_the_checkpoint_before_is_used_instead(stopped: RunFolder, trained_run: TrainedRun, note: Note, damage: Damage) -> None:
    """One line says so, and the end is the unbroken run's."""
    last = stopped.checkpoint("code", "last")
    damage(stopped, last)
    content = last.read_bytes()
    recorder = resume(stopped)
    (line,) = [message for message in recorder.messages if "previous.safetensors" in message]
    assert line.startswith(str(last)) and "kept as last.safetensors.damaged" in line and "(step 10)" in line
    assert recorder.steps[0].step == 11
    assert last.with_name("last.safetensors.damaged").read_bytes() == content
    put_aside(stopped)
    assert_same_run(stopped, trained_run)
    note(f"newest checkpoint {damage.__name__.replace('_', ' ')}", 1, f"nothing; steps 11 to {STOP} taken again")


def test_the_previous_checkpoint_survives_a_second_damage(stopped: RunFolder, trained_run: TrainedRun) -> None:
    """The damaged file is not made the previous one by the next save, which would throw the good one away."""
    bit_flipped(stopped, stopped.checkpoint("code", "last"))
    recorder = Recorder()
    stop = recorder.stop_at("code", 11)
    assert train_run(stopped, saved_config(stopped), PHASES, recorder, stop, resume=True) == "interrupted"
    truncated(stopped, stopped.checkpoint("code", "last"))
    assert resume(stopped).steps[0].step == 11
    put_aside(stopped)
    assert_same_run(stopped, trained_run)


def test_a_missing_newest_checkpoint_is_no_end(stopped: RunFolder, trained_run: TrainedRun) -> None:
    """Killed between the two renames of a save: the older one is there."""
    stopped.checkpoint("code", "last").unlink()
    assert resume(stopped).steps[0].step == 11
    assert_same_run(stopped, trained_run)


def test_where_none_is_good_the_line_is_about_the_newest(stopped: RunFolder) -> None:
    """Nothing is renamed or written; the person decides."""
    for name in ("last", "previous"):
        bit_flipped(stopped, stopped.checkpoint("code", name))
    assert refused(stopped).startswith(f"{stopped.checkpoint('code', 'last')}: damaged or edited")


def test_a_damaged_best_of_the_language_phase_does_not_stop_the_code_phase(run: RunFolder) -> None:
    """Its newest weights are nearly as good; said in a line."""
    assert train_run(run, tiny_config(), ["language"], Recorder()) == "finished"
    bit_flipped(run, run.checkpoint("language", "best"))
    recorder = Recorder()
    assert train_run(run, tiny_config("phases.code.steps=2"), ["code"], recorder) == "finished"
    best, last = (run.checkpoint("language", name) for name in ("best", "last"))
    assert any(message.startswith(f"{best}: damaged") and "newest good" in message for message in recorder.messages)
    assert f"starting from {last} (step {LANGUAGE_STEPS})" in recorder.messages


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("n_layers: 2", "n_layers: 3", "trained with model.n_layers 2, the run's config.yaml says 3"),
        ("dropout: 0.1", "dropout: 0.2", "trained with model.dropout 0.1, the run's config.yaml says 0.2"),
        ("seed: 3", "seed: 4", "trained with seed 3, now it is 4"),
        ("batch_size: 4", "batch_size: -4", "batch_size: input should be greater than or equal to 1"),
        ("batch_size: 4", "batch_sise: 4", "unknown key phases.language.batch_sise"),
        ("seed: 3", "seed: [", "not valid YAML"),
    ],
)
def test_a_config_edited_by_hand_is_refused_by_key(stopped: RunFolder, before: str, after: str, words: str) -> None:
    """What may not change is compared with the checkpoint; what makes no sense is refused by name."""
    text = stopped.config_file.read_text()
    assert before in text
    stopped.config_file.write_text(text.replace(before, after))
    assert words in refused(stopped)


def edit_manifest(folder: RunFolder, before: str, after: str) -> None:
    file = folder.data("code") / "manifest.json"
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after, 1))


@pytest.mark.parametrize(
    ("before", "after"), [('"tokens": ', '"tokens": 1'), ('"sources": [', '"sources": [], "old": ['), ("bash", "bush"), ("}", "")]
)
def test_a_manifest_edited_by_hand_is_refused(stopped: RunFolder, before: str, after: str) -> None:
    """Counts, names, a source taken out, a brace lost."""
    edit_manifest(stopped, before, after)
    message = refused(stopped)
    assert message.startswith(str(stopped.data("code") / "manifest.json"))
    assert "edited or damaged" in message or "missing or damaged" in message


def test_a_log_that_is_no_text_does_not_stop_a_run(stopped: RunFolder) -> None:
    """Whole lines are kept, rubbish is dropped: the log is for people, the checkpoint is what counts."""
    with stopped.metrics_file.open("ab") as stream:
        stream.write(b'\xff\xfe\x00\n[1]\n{"phase": "code"}\n{"phase": "code", "step": "x"}\n7\n')
    resume(stopped)
    lines = [json.loads(line) for line in stopped.metrics_file.read_text().splitlines()]
    steps = [line["step"] for line in lines if line["kind"] == "step" and line["phase"] == "code"]
    assert steps == list(range(1, CODE_STEPS + 1))


def test_the_finished_run_has_three_checkpoints_a_phase(trained_run: TrainedRun) -> None:
    """Disk space: the best, the last and the one before, all good."""
    for phase in PHASES:
        names = {name for name in files(trained_run.folder) if name.startswith(f"{phase}/")}
        assert names == {f"{phase}/{name}.safetensors" for name in ("best", "last", "previous")}
        before, last = (load_checkpoint(file).progress.step for file in reversed(trained_run.folder.resumable(phase)))
        assert 0 < before < last
