"""Whole runs: they learn, they resume exactly, and no accident costs more than the time since the last checkpoint."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from tiny_run import (
    CODE_STEPS,
    LANGUAGE_STEPS,
    Recorder,
    TrainedRun,
    metrics,
    state_on_disk,
    tiny_config,
    tiny_tokenizer,
)

from mlx_codegen import backend
from mlx_codegen.checkpoint import Progress, load_checkpoint
from mlx_codegen.config import PhaseName, RunConfig, to_yaml
from mlx_codegen.data.batches import TrainingBatches, open_token_files, validation_batches
from mlx_codegen.errors import UserError
from mlx_codegen.model import Transformer
from mlx_codegen.observer import StepMetrics
from mlx_codegen.training.phases import train_run
from mlx_codegen.training.run_folder import RunFolder, saved_config
from mlx_codegen.training.step import make_evaluation
from mlx_codegen.training.trainer import MAX_SKIPPED_IN_A_ROW, PhaseData, Trainer

ROOT = Path(__file__).parents[1]
BOTH: list[PhaseName] = ["language", "code"]


def train(
    folder: RunFolder,
    *overrides: str,
    phases: list[PhaseName] = BOTH,
    stop_at: tuple[str, int] | None = None,
    **options: Any,
) -> Recorder:
    recorder = Recorder()
    should_stop = recorder.stop_at(*stop_at) if stop_at else lambda: False
    outcome = train_run(folder, tiny_config(*overrides), phases, recorder, should_stop, **options)
    assert outcome == ("interrupted" if stop_at else "finished")
    return recorder


def assert_same_run(folder: RunFolder, unbroken: RunFolder) -> None:
    """Same log line by line, same weights, moments, random state and position, bit for bit."""
    assert metrics(folder) == metrics(unbroken)
    for phase in BOTH:
        for name in ("best", "last"):
            ours, theirs = state_on_disk(folder.checkpoint(phase, name)), state_on_disk(unbroken.checkpoint(phase, name))
            assert ours[1] == theirs[1], f"{phase} {name}"
            assert ours[0] == theirs[0], f"{phase} {name}"


def evaluate_on(folder: RunFolder, phase: PhaseName, weights_of: PhaseName) -> float:
    """Validation loss on a phase's text of the best weights of a phase."""
    checkpoint = load_checkpoint(folder.checkpoint(weights_of, "best"))
    tokenizer = checkpoint.tokenizer
    held_out = validation_batches(open_token_files(folder.data(phase), "validation", {}, tokenizer.hash), 4, 32, 512)
    evaluate = make_evaluation(checkpoint.build_model(), "float32", backend.compute_streams(), tokenizer.byte_lengths())
    return evaluate(held_out)[0]


def losses(recorder: Recorder, phase: str) -> list[float]:
    return [step.loss for step in recorder.steps if step.phase == phase]


def validation(recorder: Recorder, phase: str) -> list[float]:
    return [evaluation.loss for evaluation in recorder.evaluations if evaluation.phase == phase]


# --- learning ---


def test_loss_falls_on_real_text_in_both_phases(trained_run: TrainedRun) -> None:
    """On text that it has not seen: English first, then bash, by far more than noise."""
    language, code = validation(trained_run.recorder, "language"), validation(trained_run.recorder, "code")
    assert language[-1] < language[0] - 1.0
    assert code[-1] < code[0] - 0.4
    steps = losses(trained_run.recorder, "code")
    assert sum(steps[-5:]) < sum(steps[:5]) - 5 * 0.4


def test_code_phase_starts_from_the_languages_best_weights(trained_run: TrainedRun) -> None:
    """Its evaluation before the first step is that of the language phase's best checkpoint on bash."""
    assert validation(trained_run.recorder, "code")[0] == evaluate_on(trained_run.folder, "code", "language")
    assert any("starting from" in message and "language/best" in message for message in trained_run.recorder.messages)


def test_code_phase_lowers_bash_loss(trained_run: TrainedRun) -> None:
    """What the phase is for; the loss on English is measured beside it, and it did change."""
    before, after = (evaluate_on(trained_run.folder, "code", weights) for weights in BOTH)
    assert after < before - 0.4
    english_before, english_after = (evaluate_on(trained_run.folder, "language", weights) for weights in BOTH)
    assert english_before != english_after


def test_language_phase_helps_the_code_phase(run: RunFolder, trained_run: TrainedRun) -> None:
    """Without it the code phase begins at ln V; with it, it begins lower."""
    recorder = train(run, "phases.language=null", "phases.code.steps=1", phases=["code"])
    assert validation(trained_run.recorder, "code")[0] < validation(recorder, "code")[0]


# --- what is reported and written ---


def test_log_has_every_step_and_evaluation_once(trained_run: TrainedRun) -> None:
    """Steps 1 to N of each phase, evaluations at 0, every n steps and the end; all figures that the log promises."""
    lines = [json.loads(line) for line in trained_run.folder.metrics_file.read_text().splitlines()]
    for phase, total in (("language", LANGUAGE_STEPS), ("code", CODE_STEPS)):
        steps = [line["step"] for line in lines if line["phase"] == phase and line["kind"] == "step"]
        evaluations = [line["step"] for line in lines if line["phase"] == phase and line["kind"] == "evaluation"]
        assert steps == list(range(1, total + 1))
        assert evaluations == list(range(0, total + 1, 6))
    step = next(line for line in lines if line["kind"] == "step" and line["step"] == 9)
    assert step["perplexity"] == pytest.approx(2.718281828 ** step["loss"], rel=1e-5)
    assert step["tokens_seen"] == 9 * 4 * 32
    assert step["tokens_per_second"] > 0
    assert step["peak_memory_bytes"] > 0
    assert step["gradient_norm"] > 0
    assert 0 < step["learning_rate"] <= 1e-2
    assert all(line["bits_per_byte"] > 0 for line in lines if line["kind"] == "evaluation")


def test_best_is_the_best_and_last_is_the_last(trained_run: TrainedRun) -> None:
    """`best` holds the weights of the lowest validation loss, `last` those of the final step and all to go on."""
    totals: dict[PhaseName, int] = {"language": LANGUAGE_STEPS, "code": CODE_STEPS}
    for phase, total in totals.items():
        evaluations = [e for e in trained_run.recorder.evaluations if e.phase == phase]
        lowest = min(evaluations, key=lambda e: e.loss)
        best = load_checkpoint(trained_run.folder.checkpoint(phase, "best"))
        last = load_checkpoint(trained_run.folder.checkpoint(phase, "last"))
        assert (best.progress.step, best.progress.best_loss) == (lowest.step, lowest.loss)
        assert (last.progress.step, last.progress.finished, bool(last.trainer)) == (total, True, True)
        assert evaluate_on(trained_run.folder, phase, phase) == lowest.loss


RUINOUS = ["phases.language.learning_rate=1.0", "phases.language.schedule=constant"]


def test_best_stays_when_validation_gets_worse(run: RunFolder, trained_run: TrainedRun) -> None:
    """A learning rate that ruins a trained model must not ruin the best checkpoint."""
    start = trained_run.folder.checkpoint("language", "best")
    evaluations = train(run, *RUINOUS, phases=["language"], init_from=start).evaluations
    lowest = min(evaluations, key=lambda e: e.loss)
    assert lowest.step < LANGUAGE_STEPS, "the rate is meant to be far too high"
    best = load_checkpoint(run.checkpoint("language", "best")).progress
    assert (best.step, best.best_loss) == (lowest.step, lowest.loss)
    assert [e.best for e in evaluations] == [
        e.loss == min(x.loss for x in evaluations[: n + 1]) for n, e in enumerate(evaluations)
    ]


def test_gradient_accumulation_and_epochs_count_tokens(run: RunFolder) -> None:
    """Two passes of four sequences are 256 tokens a step; an epoch is as many steps as its tokens need."""
    changes = ["phases.code.gradient_accumulation=2", "phases.code.steps=null", "phases.code.epochs=0.1", "phases.language=null"]
    recorder = train(run, *changes, phases=["code"])
    (start,) = recorder.starts
    assert start.tokens_per_step == 256
    assert start.total_steps == -(-start.train_tokens // 2560)
    assert recorder.steps[-1].step == start.total_steps
    assert recorder.steps[-1].tokens_seen == 256 * start.total_steps


# --- resuming ---


@pytest.mark.parametrize(
    "stops",
    [
        [("language", LANGUAGE_STEPS - 1)],
        [("code", 13)],
        [("language", 1), ("language", 12), ("language", 13), ("code", 1), ("code", CODE_STEPS - 1)],
    ],
    ids=str,
)
def test_interrupted_and_resumed_equals_unbroken(run: RunFolder, trained_run: TrainedRun, stops: list[tuple[str, int]]) -> None:
    """At the first step, on an evaluation, before the last step, across the phase border, again and again; dropout on."""
    for number, stop in enumerate(stops):
        recorder = train(run, stop_at=stop, resume=number > 0)
        assert (recorder.steps[-1].phase, recorder.steps[-1].step) == stop
        assert recorder.ends[-1] == (stop[0], "interrupted")
    train(run, resume=True)
    assert_same_run(run, trained_run.folder)


def test_dropout_matters_in_the_resume_test(run: RunFolder, trained_run: TrainedRun) -> None:
    """Without this, a resume that loses the random state would pass the test above."""
    assert losses(train(run, "model.dropout=0", phases=["language"]), "language") != losses(trained_run.recorder, "language")


class PowerCutError(Exception):
    """Stands for a `kill -9`: the run ends where it is and saves nothing."""


def cut_at(recorder: Recorder, phase: str, step: int) -> Callable[[], bool]:
    reached = recorder.stop_at(phase, step)

    def should_stop() -> bool:
        if reached():
            raise PowerCutError
        return False

    return should_stop


@pytest.mark.parametrize("cut", [("language", 8), ("code", 1), ("code", 14)], ids=str)
def test_killed_and_resumed_equals_unbroken(run: RunFolder, trained_run: TrainedRun, cut: tuple[str, int]) -> None:
    """The log is ahead of the last checkpoint and ends in half a line: no step is there twice or missing afterwards."""
    recorder = Recorder()
    with pytest.raises(PowerCutError):
        train_run(run, tiny_config(), BOTH, recorder, cut_at(recorder, *cut))
    saved = load_checkpoint(run.checkpoint(cut[0], "last")).progress.step  # type: ignore[arg-type]
    assert saved < cut[1]
    with run.metrics_file.open("a") as stream:
        stream.write('{"kind": "step", "phase": "lang')
    resumed = train(run, resume=True)
    assert resumed.steps[0].step == saved + 1
    assert_same_run(run, trained_run.folder)


# Exactness is promised on the CPU.
COMMAND = """
import mlx_codegen, mlx.core as mx
mx.set_default_device(mx.cpu)
from mlx_codegen.cli.main import main
main()
"""


def start_command(folder: RunFolder, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, "train", "tiny.yaml", *arguments],
        cwd=folder.path.parents[1],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def interrupt_at(process: "subprocess.Popen[str]", line_start: str) -> str:
    """Ctrl-C as soon as the process says this. Returns what it writes to stderr."""
    assert process.stdout is not None
    assert any(line.startswith(line_start) for line in process.stdout), "the process never came that far"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    return errors


def test_ctrl_c_in_a_real_process_and_resume_equals_unbroken(run: RunFolder, trained_run: TrainedRun) -> None:
    """Two interruptions by SIGINT, one in each phase: the step is finished, saved, and the way on is shown."""
    (run.path.parents[1] / "tiny.yaml").write_text(to_yaml(tiny_config()))
    errors = interrupt_at(start_command(run), "language step 0")
    assert errors == "saved; go on with: mlx-codegen train tiny.yaml --resume\n"
    assert not run.checkpoint("code", "last").exists()
    errors = interrupt_at(start_command(run, "--resume"), "code step 0")
    assert errors == "saved; go on with: mlx-codegen train tiny.yaml --resume\n"
    assert 0 < load_checkpoint(run.checkpoint("code", "last")).progress.step < CODE_STEPS
    train(run, resume=True)
    assert_same_run(run, trained_run.folder)


def test_finished_phases_are_not_trained_again(trained_copy: RunFolder, trained_run: TrainedRun) -> None:
    """--resume on a finished run says so and changes no file."""
    recorder = train(trained_copy, resume=True)
    assert recorder.steps == []
    assert len([message for message in recorder.messages if "already finished" in message]) == 2
    assert_same_run(trained_copy, trained_run.folder)


def test_finished_run_can_be_trained_longer(trained_copy: RunFolder) -> None:
    """--resume --set phases.code.steps=...: goes on at the next step with the same log; language stays finished."""
    config = saved_config(trained_copy, [f"phases.code.steps={CODE_STEPS + 4}"])
    recorder = Recorder()
    assert train_run(trained_copy, config, BOTH, recorder, resume=True) == "finished"
    assert [(step.phase, step.step) for step in recorder.steps] == [("code", CODE_STEPS + n) for n in range(1, 5)]
    steps = [line["step"] for line in metrics(trained_copy) if line["phase"] == "code" and line["kind"] == "step"]
    assert steps == list(range(1, CODE_STEPS + 5))
    assert load_checkpoint(trained_copy.checkpoint("code", "last")).progress.step == CODE_STEPS + 4


def test_early_stopping_stops_and_stays_stopped(run: RunFolder, trained_run: TrainedRun) -> None:
    """After so many evaluations without gain the phase is finished, the code phase follows, and --resume keeps it so."""
    early = [*RUINOUS, "phases.language.early_stopping=2", "phases.language.validate_every=3", "phases.code.steps=2"]
    recorder = train(run, *early, init_from=trained_run.folder.checkpoint("language", "best"))
    evaluations = [e for e in recorder.evaluations if e.phase == "language"]
    assert recorder.ends[0] == ("language", "early stopping")
    assert [e.best for e in evaluations[-2:]] == [False, False]
    assert all(any(e.best for e in evaluations[n : n + 2]) for n in range(len(evaluations) - 2)), "stopped too late"
    assert evaluations[-1].step < LANGUAGE_STEPS
    assert recorder.ends[1] == ("code", "finished")
    assert train(run, *early, resume=True).steps == []


def test_resume_needs_the_same_token_files_and_tokenizer(trained_copy: RunFolder, trained_run: TrainedRun) -> None:
    """A position in other data means nothing: refused by name instead of trained on something else."""
    manifest = trained_copy.data("code") / "manifest.json"
    values = {name: value for name, value in json.loads(manifest.read_text()).items() if name != "checksum"}
    manifest.write_text(json.dumps({**values, "fingerprint": "0" * 16}))
    longer = [f"phases.code.steps={CODE_STEPS + 4}"]
    with pytest.raises(UserError, match="token files of code changed"):
        train(trained_copy, *longer, resume=True)
    manifest.write_text(json.dumps({**values, "tokenizer_hash": "0" * 16}))
    with pytest.raises(UserError, match="belong to tokenizer 0000"):
        train(trained_copy, *longer, resume=True)


def test_batch_order_depends_on_seed_and_position_only(run: RunFolder) -> None:
    """What the resumed run reads is what the unbroken run would have read, also over the end of an epoch."""
    files = open_token_files(run.data("code"), "train", {}, tiny_tokenizer(run).hash)
    straight, broken = TrainingBatches(files, 4, 32, 3), TrainingBatches(files, 4, 32, 3)
    total = straight.tokens_per_epoch // (4 * 32) + 3
    expected = [straight.next().tobytes() for _ in range(total)]
    read = []
    for _ in range(total):
        state = json.loads(json.dumps(broken.state()))
        broken = TrainingBatches(files, 4, 32, 3)
        broken.restore(state)
        read.append(broken.next().tobytes())
    assert read == expected
    assert TrainingBatches(files, 4, 32, 4).next().tobytes() != expected[0]


# --- other starts ---


def test_init_from_starts_with_those_weights_and_that_tokenizer(trained_run: TrainedRun, tmp_path: Path) -> None:
    """A new run in a new folder, from any checkpoint; its own optimizer starts anew."""
    folder = RunFolder(tmp_path / "continued")
    start = trained_run.folder.checkpoint("language", "best")
    recorder = train(folder, "phases.code.steps=2", phases=["code"], init_from=start)
    assert tiny_tokenizer(folder).hash == load_checkpoint(start).tokenizer.hash
    assert recorder.evaluations[0].loss == pytest.approx(validation(trained_run.recorder, "code")[0], abs=1e-6)
    assert recorder.steps[0].loss == losses(trained_run.recorder, "code")[0]
    assert load_checkpoint(folder.checkpoint("code", "last")).trainer["optimizer"]["updates"].item() == 2


def test_init_from_is_for_the_first_phase_only(run: RunFolder, trained_run: TrainedRun) -> None:
    """Language goes on from the given weights; code then starts from what language made of them."""
    start = trained_run.folder.checkpoint("code", "best")
    recorder = train(run, "phases.language.steps=6", "phases.code.steps=1", init_from=start)
    assert validation(recorder, "language")[0] == evaluate_on(trained_run.folder, "language", "code")
    assert validation(recorder, "code")[0] == evaluate_on(run, "code", "language")


def test_a_run_killed_before_its_first_checkpoint_keeps_its_start(run: RunFolder, trained_run: TrainedRun) -> None:
    """--init-from is not repeated on --resume: the first weights must be on disk from the beginning."""
    start, recorder = trained_run.folder.checkpoint("language", "best"), Recorder()
    with pytest.raises(PowerCutError):
        train_run(run, tiny_config(), ["code"], recorder, cut_at(recorder, "code", 1), init_from=start)
    resumed = train(run, phases=["code"], resume=True)
    assert losses(resumed, "code") == losses(trained_run.recorder, "code")


def test_code_alone_needs_a_start(run: RunFolder) -> None:
    """--phase code without a trained language phase would silently start from random weights."""
    with pytest.raises(UserError, match=r"language/best.* is not there; train it first"):
        train(run, phases=["code"])


def test_another_shape_in_the_same_folder_is_refused(trained_copy: RunFolder, trained_run: TrainedRun) -> None:
    """Before anything is changed there."""
    before = metrics(trained_copy)
    for change in ("model.d_model=64", "model.vocab_size=500", "tokenizer.training_bytes=20000"):
        with pytest.raises(UserError, match="another --name"):
            train(trained_copy, change)
    with pytest.raises(UserError, match="only one"):
        train(trained_copy, resume=True, init_from=trained_copy.checkpoint("code", "best"))
    assert metrics(trained_copy) == before
    assert_same_run(trained_copy, trained_run.folder)


# --- what goes wrong ---


class Spoiler(Recorder):
    """Puts an infinity into the weights after a step, as a broken kernel or memory might."""

    def __init__(self, at_step: int) -> None:
        super().__init__()
        self.at_step = at_step
        self.model: Transformer | None = None

    def on_step(self, metrics: StepMetrics) -> None:
        super().on_step(metrics)
        if metrics.step == self.at_step and self.model is not None:
            self.model.token_embedding.weight[:] = mx.inf


def make_trainer(run: RunFolder, config: RunConfig, recorder: Recorder) -> Trainer:
    tokenizer, settings = tiny_tokenizer(run), config.phases.code
    assert settings is not None
    files = open_token_files(run.data("code"), "train", {}, tokenizer.hash)
    held_out = validation_batches(open_token_files(run.data("code"), "validation", {}, tokenizer.hash), 4, 32, 256)
    mx.random.seed(0)
    model = Transformer(config.model.model_copy(update={"vocab_size": tokenizer.vocab_size}))
    data = PhaseData(TrainingBatches(files, 4, 32, 0), held_out, "")
    return Trainer(run.path / "code", config, settings, model, tokenizer, data, Progress("code", total_steps=40), recorder)


def test_losses_that_are_not_finite_stop_the_run_and_keep_the_checkpoints(run: RunFolder) -> None:
    """A few in a row, with evaluations and checkpoints due in between: `best` and `last` are those from before."""
    config = tiny_config("phases.code.validate_every=3", "phases.code.checkpoint_every=3")
    recorder = Spoiler(at_step=8)
    trainer = make_trainer(run, config, recorder)
    recorder.model = trainer.model
    message = rf"not finite for {MAX_SKIPPED_IN_A_ROW} steps in a row.*lower phases.code.learning_rate"
    with pytest.raises(UserError, match=message):
        trainer.run(lambda: False)
    assert [step.skipped for step in recorder.steps] == [False] * 8 + [True] * MAX_SKIPPED_IN_A_ROW
    last, best = (load_checkpoint(run.checkpoint("code", name)) for name in ("last", "best"))
    for checkpoint in (last, best):
        assert checkpoint.progress.step <= 6
        assert all(mx.all(mx.isfinite(value)).item() for _, value in tree_flatten(checkpoint.weights))
    assert [name for name, step in recorder.checkpoints if step > 8] == []


def test_float16_and_bfloat16_runs_resume_exactly(run: RunFolder, tmp_path: Path) -> None:
    """The loss scale is part of the state."""
    for precision in ("float16", "bfloat16"):
        settings = (f"precision={precision}", "phases.language.steps=6")
        unbroken, broken = RunFolder(tmp_path / f"{precision}-a"), RunFolder(tmp_path / f"{precision}-b")
        for folder in (unbroken, broken):
            shutil.copytree(run.path, folder.path)
        expected = losses(train(unbroken, *settings, phases=["language"]), "language")
        first = train(broken, *settings, phases=["language"], stop_at=("language", 3))
        second = train(broken, *settings, phases=["language"], resume=True)
        assert losses(first, "language") + losses(second, "language") == expected
        assert first.starts[0].precision == precision
        assert expected[-1] < expected[0]


def test_validation_text_is_never_trained_on(run: RunFolder) -> None:
    """No window of validation text is read by the training batches: the two are different files of different documents."""
    tokenizer = tiny_tokenizer(run)
    train_files = open_token_files(run.data("code"), "train", {}, tokenizer.hash)
    held_out = open_token_files(run.data("code"), "validation", {}, tokenizer.hash)

    def documents(files: list[Any]) -> set[bytes]:
        ends = [0, *files[0].document_ends.tolist()]
        return {files[0].tokens[a:b].tobytes() for a, b in zip(ends, ends[1:], strict=False)}

    assert documents(held_out)
    assert not documents(train_files) & documents(held_out)
