"""Several processes train one model: the same losses as one with larger batches, stops together, ends together.

Real processes on this machine, started as `mlx.launch` starts them or by it.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from tiny_run import Recorder, tiny_config, tiny_tokenizer

from mlx_codegen.checkpoint import load_checkpoint
from mlx_codegen.config import to_yaml
from mlx_codegen.data.batches import TrainingBatches, open_token_files
from mlx_codegen.errors import UserError
from mlx_codegen.training.lock import holder
from mlx_codegen.training.peers import PORTS_BELOW, place_from_environment
from mlx_codegen.training.phases import total_steps, train_run
from mlx_codegen.training.run_folder import RunFolder

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not mx.distributed.is_available("ring"), reason="this build of MLX has no ring backend")

# One phase without end, to be stopped; and a learning rate at which rounding differences stay small.
CHANGES = ["model.dropout=0.0", "phases.language=null", "phases.code.steps=100000", "phases.code.learning_rate=1e-3"]
CHANGES += ["phases.code.schedule=constant", "phases.code.warmup_steps=0", "phases.code.checkpoint_every=6"]
TRAIN = [sys.executable, "-m", "mlx_codegen", "train", "tiny.yaml"]


def free_ports(count: int) -> list[int]:
    """A row of ports that nobody listens on, and neither on those that our own connections take."""
    for first in range(20000 + os.getpid() % 5000, 30000, 10):
        ports = list(range(first, first + count))
        try:
            for port in [*ports, *(port - PORTS_BELOW for port in ports)]:
                socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return ports
    raise AssertionError("no free ports")


class Ranks:
    """Processes with the environment that `mlx.launch` gives them. As a context manager it leaves none behind."""

    def __init__(self, tmp_path: Path, *commands: list[str], folders: list[Path] | None = None) -> None:
        ports = free_ports(len(commands))
        hostfile = tmp_path / "hosts.json"
        hostfile.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in ports]))
        self.processes = [
            subprocess.Popen(
                command,
                cwd=folders[rank] if folders else tmp_path,
                env={**os.environ, "PYTHONPATH": str(ROOT), "MLX_HOSTFILE": str(hostfile), "MLX_RANK": str(rank)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank, command in enumerate(commands)
        ]

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def results(self) -> list[tuple[int, str, str]]:
        """Exit status, output and errors of each; MLX's own lines about its sockets left out."""
        done = []
        for process in self.processes:
            output, errors = process.communicate(timeout=100)
            # MLX writes a line in several pieces: ours may stand in the middle of one
            done.append((process.returncode, output, re.sub(r"\[ring\][^\n]*?(?=error: |\n)\n?", "", errors)))
        return done


def write_run(folder: Path, prepared: Path, *overrides: str) -> RunFolder:
    """`tiny.yaml` in a folder, and the run that it names with everything prepared."""
    folder.mkdir(exist_ok=True)
    (folder / "tiny.yaml").write_text(to_yaml(tiny_config(*CHANGES, *overrides)))
    shutil.copytree(prepared, folder / "runs" / "tiny")
    return RunFolder(folder / "runs" / "tiny")


def log(folder: RunFolder, kind: str) -> list[dict[str, Any]]:
    if not folder.metrics_file.exists():
        return []
    lines = folder.metrics_file.read_text().splitlines(keepends=True)
    values = [json.loads(line) for line in lines if line.endswith("\n")]
    return [line for line in values if line["kind"] == kind]


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def wait_for_step(folder: RunFolder, step: int) -> None:
    wait_until(lambda: any(line["step"] >= step for line in log(folder, "step")))


# --- the stream of batches ---


def test_ranks_share_the_rows_of_one_stream(prepared_run: Path) -> None:
    """Rank r's batch is the r-th part of what one process with larger batches reads, across epochs too; so is its position."""
    folder = RunFolder(prepared_run)
    files = open_token_files(folder.data("code"), "train", {}, tiny_tokenizer(folder).hash)
    whole = TrainingBatches(files, 6, 32, seed=3)
    ranks = [TrainingBatches(files, 2, 32, seed=3, rank=rank, ranks=3) for rank in range(3)]
    epochs = set()
    for _ in range(2 * whole.tokens_per_epoch // (6 * 32)):
        assert np.concatenate([each.next() for each in ranks]).tobytes() == whole.next().tobytes()
        assert all(each.state() == whole.state() for each in ranks)
        epochs.add(whole.state()["epoch"])
    assert len(epochs) > 1
    assert {each.tokens_per_batch for each in ranks} == {whole.tokens_per_batch} == {6 * 32}


def test_epochs_are_counted_in_tokens_whatever_the_number_of_ranks(prepared_run: Path) -> None:
    """Half an epoch trained by two ranks and the rest by one are one epoch."""
    folder = RunFolder(prepared_run)
    files = open_token_files(folder.data("code"), "train", {}, tiny_tokenizer(folder).hash)
    config = tiny_config("phases.code.steps=null", "phases.code.epochs=1")
    one, two = TrainingBatches(files, 4, 32, seed=3), TrainingBatches(files, 4, 32, seed=3, rank=0, ranks=2)
    progress = load_progress(step=100, tokens_seen=100 * two.tokens_per_batch)
    alone, shared = total_steps(config, "code", one), total_steps(config, "code", two)
    assert shared == -(-alone // 2)
    assert total_steps(config, "code", two, progress) == shared
    assert total_steps(config, "code", one, progress) == 100 + (alone - 200)


def load_progress(**values: int) -> Any:
    from mlx_codegen.checkpoint import Progress

    return Progress("code", **values)  # type: ignore[arg-type]


# --- the environment of mlx.launch ---


def test_place_in_a_job_is_read_from_the_environment(tmp_path: Path) -> None:
    """Alone without mlx.launch and with -n 1; a chain for the ring; a star around the coordinator for the others."""
    hosts = tmp_path / "hosts"
    assert place_from_environment({}) is None
    hosts.write_text("\n")  # what mlx.launch -n 1 writes
    assert place_from_environment({"MLX_RANK": "0", "MLX_HOSTFILE": str(hosts)}) is None
    hosts.write_text('[["10.0.0.1:5000", "10.0.1.1:5001"], ["10.0.0.2:5000"], ["10.0.0.3:5000"]]')
    places = [place_from_environment({"MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)}) for rank in range(3)]
    assert [place and (place.listen, place.connect_to, place.accept) for place in places] == [
        (("10.0.0.1", 4000), (("10.0.0.2", 4000),), 0),
        (("10.0.0.2", 4000), (("10.0.0.3", 4000),), 1),
        (("10.0.0.3", 4000), (), 1),
    ]
    hosts.write_text("[[null, null], [null, null]]")
    jaccl = {"MLX_RANK": "1", "MLX_JACCL_COORDINATOR": "10.0.0.1:32323", "MLX_IBV_DEVICES": str(hosts)}
    nccl = {"MLX_RANK": "0", "MLX_WORLD_SIZE": "4", "NCCL_HOST_IP": "10.0.0.1", "NCCL_PORT": "12345"}
    one, first = place_from_environment(jaccl), place_from_environment(nccl)
    assert one and (one.backend, one.size, one.connect_to, one.accept) == ("jaccl", 2, (("10.0.0.1", 31323),), 0)
    assert first and (first.backend, first.size, first.listen, first.accept) == ("nccl", 4, ("10.0.0.1", 11345), 3)
    with pytest.raises(UserError, match="--backend ring"):
        place_from_environment({"OMPI_COMM_WORLD_SIZE": "2"})


# --- collectives and decisions ---

SUMS = """
import json, sys
import mlx_codegen
import mlx.core as mx
import numpy as np
from tiny_run import tiny_config, phase_settings
from mlx_codegen.model import Transformer
from mlx_codegen.training import step as step_module
from mlx_codegen.training.distributed import joined_group
from mlx_codegen.training.step import TrainStep

mx.set_default_device(mx.cpu)
with joined_group(lambda rank, host, why: None) as group:
    rank, found = group.rank, {}
    tree = {"a": mx.full((2, 3), float(rank + 1)), "empty": {}, "b": [mx.array(10.0 * rank)]}
    total = group.sum(tree)
    found["sum"] = [total["a"].tolist(), total["b"][0].item(), list(total)]
    odd = {"x": mx.array([-0.0, float("nan"), 1e-45, float("inf")]) * (rank == 0), "n": mx.array(-7 + rank)}
    found["shared"] = [np.array(v).tobytes().hex() for v in group.share(odd).values()]
    found["gathered"] = group.gather({"rank": rank, "pair": (rank, None)})
    found["stops"] = [group.stops(False), group.stops(rank == 2)]

    mx.random.seed(1)
    model = Transformer(tiny_config("model.dropout=0.0").model)
    stream = [mx.default_stream(mx.cpu)]
    step = TrainStep(model, phase_settings(), "float32", stream, compiled=sys.argv[1] == "compiled", group=group)
    good = step_module.total_loss
    bad = lambda model, tokens: good(model, tokens) * (float("nan") if tokens[0, 0].item() == 1 else 1.0)
    step_module.total_loss = bad if sys.argv[1] == "plain" else good
    found["steps"] = []
    for number, poisoned in enumerate([None, 1, None]):
        rows = np.random.default_rng([number, rank]).integers(2, 400, (2, 33))
        rows[0, 0] = 1 if rank == poisoned else 2
        loss, norm, usable = step([mx.array(rows)], 1e-2)[:3]
        mx.eval(loss, norm, usable, step.arrays())
        weights = np.concatenate([np.array(p).ravel() for _, p in mlx_tree(model.parameters())])
        found["steps"].append([bool(usable.item()), loss.item(), __import__("hashlib").sha256(weights.tobytes()).hexdigest()])
print(json.dumps(found))
""".replace("mlx_tree", "__import__('mlx.utils').utils.tree_flatten")


def run_sums(tmp_path: Path, kind: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r})\n" + SUMS, kind]
    with Ranks(tmp_path, command, command, command) as ranks:
        results = ranks.results()
    assert [status for status, _, _ in results] == [0, 0, 0], results
    return [json.loads(output) for _, output, _ in results]


def test_sums_and_decisions_are_the_same_on_all_ranks(tmp_path: Path) -> None:
    """One fused sum of a tree; rank 0's arrays everywhere, bit for bit; a NaN on one rank is skipped by all, or by none."""
    found = run_sums(tmp_path, "plain")
    for each in found:
        assert each == found[0]
    first = found[0]
    assert first["sum"] == [[[6.0] * 3] * 2, 30.0, ["a", "empty", "b"]]
    expected = np.array([-0.0, np.nan, 1e-45, np.inf], np.float32), np.array(-7, np.int32)
    assert first["shared"] == [value.tobytes().hex() for value in expected]
    assert first["gathered"] == [{"rank": rank, "pair": [rank, None]} for rank in range(3)]
    assert first["stops"] == [False, True]
    (good, _, before), (poisoned, loss, after), (good_again, _, last) = first["steps"]
    assert (good, poisoned, good_again) == (True, False, True)
    assert np.isnan(loss)
    assert before == after != last


# --- whole runs ---


def test_stopped_and_resumed_alone_two_ranks_equal_one_process(prepared_run: Path, tmp_path: Path) -> None:
    """Batches of 2 + 2 give the losses of batches of 4; a signal to one rank stops both after the same step; one process
    goes on with the same stream; and rank 0 alone writes and shows."""
    folder = write_run(tmp_path / "together", prepared_run, "phases.code.batch_size=2")
    with Ranks(folder.path.parents[1], TRAIN, TRAIN) as ranks:
        wait_for_step(folder, 5)
        ranks.processes[1].send_signal(signal.SIGINT)
        (status, output, errors), (other_status, *silence) = ranks.results()
    assert (status, other_status, silence) == (130, 130, ["", ""])
    assert "2 processes" in output
    assert errors == "saved; go on with: mlx-codegen train tiny.yaml --resume\n"
    stopped = load_checkpoint(folder.checkpoint("code", "last")).progress
    assert stopped.step >= 5
    assert stopped.tokens_seen == stopped.step * 4 * 32

    alone = write_run(tmp_path / "alone", prepared_run)
    steps = f"phases.code.steps={stopped.step + 8}"
    assert train_run(alone, tiny_config(*CHANGES, steps), ["code"], Recorder()) == "finished"
    resumed = subprocess.run(
        [*TRAIN, "--resume", "--set", "phases.code.batch_size=4", "--set", steps],
        cwd=folder.path.parents[1],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert resumed.returncode == 0, resumed.stderr
    for kind in ("step", "evaluation"):
        ours, theirs = log(folder, kind), log(alone, kind)
        assert [line["step"] for line in ours] == [line["step"] for line in theirs]
        assert [line["loss"] for line in ours] == pytest.approx([line["loss"] for line in theirs], abs=2e-4)
    assert log(folder, "step")[-1]["tokens_seen"] == log(alone, "step")[-1]["tokens_seen"]


def test_a_killed_rank_ends_the_job_and_its_checkpoint_is_good(prepared_run: Path, tmp_path: Path) -> None:
    """Within seconds, with a line that names it and a status that is not 0. Each rank here sees a disk of its own: the
    second one prepares for itself and writes no checkpoint."""
    first = write_run(tmp_path / "first", prepared_run)
    (tmp_path / "second").mkdir()
    second = RunFolder(tmp_path / "second" / "runs" / "tiny")
    shutil.copy(tmp_path / "first" / "tiny.yaml", tmp_path / "second")
    with Ranks(tmp_path, TRAIN, TRAIN, folders=[tmp_path / "first", tmp_path / "second"]) as ranks:
        wait_for_step(first, 8)
        ranks.processes[1].kill()
        killed = time.monotonic()
        (status, _, errors), _ = ranks.results()
    assert time.monotonic() - killed < 15
    assert status == 2
    # MLX's ring may get a word in, now and then, while the process ends
    lines = [line for line in errors.splitlines() if line and not line.startswith("[ring]")]
    assert len(lines) == 1 and lines[0].startswith("error: rank 1 (") and "--resume" in lines[0]
    assert load_checkpoint(first.checkpoint("code", "last")).progress.step >= 6
    assert second.config_file.exists() and (second.data("code") / "manifest.json").exists()
    assert not second.holds_checkpoints() and not second.metrics_file.exists()


def test_a_rank_with_another_configuration_is_refused(prepared_run: Path, tmp_path: Path) -> None:
    """All ranks say which one differs and in what, before anything is trained."""
    folder = write_run(tmp_path, prepared_run)
    with Ranks(tmp_path, TRAIN, [*TRAIN, "--set", "phases.code.weight_decay=0.3"]) as ranks:
        results = ranks.results()
    for status, _, errors in results:
        assert status == 2
        assert errors.count("\n") == 1
        assert "rank 1" in errors
    assert "another configuration" in results[0][2]
    assert not folder.holds_checkpoints()


def test_ranks_stop_and_save_when_mlx_launch_is_killed(prepared_run: Path, tmp_path: Path) -> None:
    """Nobody hears them any more; a second mlx.launch goes on and finishes."""
    launcher = Path(sys.executable).with_name("mlx.launch")
    if not launcher.exists() or shutil.which("ps") is None:
        pytest.skip("mlx.launch (and ps, which it calls) is not installed")
    folder = write_run(tmp_path, prepared_run)

    def start(*arguments: str) -> "subprocess.Popen[str]":
        command = [str(launcher), "-n", "2", "--starting-port", str(free_ports(2)[0]), "--", *TRAIN, *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
        return subprocess.Popen(command, cwd=tmp_path, env=environment, text=True, **pipes)

    with start() as launched:
        wait_for_step(folder, 3)
        launched.terminate()

    wait_until(lambda: holder(folder.path) is None)
    saved = load_checkpoint(folder.checkpoint("code", "last")).progress.step
    assert saved == log(folder, "step")[-1]["step"] >= 3
    with start("--resume", "--set", f"phases.code.steps={saved + 2}") as launched:
        output, _ = launched.communicate(timeout=100)
    assert "trained; try it" in output
    assert output.count("code phase finished") == 1
    assert load_checkpoint(folder.checkpoint("code", "last")).progress.finished
