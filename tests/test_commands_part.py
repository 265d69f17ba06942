"""One-line commands are read as the shell reads them, compared with held-out pairs, and nothing flatters."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_run import TrainedRun, run_values

import mlx_codegen
from mlx_codegen.checkpoint import Progress, load_checkpoint, save_checkpoint
from mlx_codegen.cli.main import run as command_line
from mlx_codegen.config import build_run_config
from mlx_codegen.data.prepare import document_hash, split_of
from mlx_codegen.data.sources import pair_document
from mlx_codegen.data.tasks import Rendering, load_tasks, load_words
from mlx_codegen.evaluation import commands
from mlx_codegen.evaluation.commands import bleu, copied_values, is_exact, likeness, measure_commands
from mlx_codegen.evaluation.context import Context, Settings
from mlx_codegen.evaluation.pairs import PAIRS, one_line_pair, pair_sets
from mlx_codegen.evaluation.samples import Sample
from mlx_codegen.evaluation.shell_parse import Utility, utilities_and_flags
from mlx_codegen.generation.engine import Completion

DATA = Path(__file__).parents[1] / "data" / "bash"
TASKS, WORDS = load_tasks(DATA), load_words(DATA)

READ = {
    "ls -la": "ls -a -l",
    "ls -l -a": "ls -a -l",
    "ls": "ls",
    "/usr/bin/ls -1r": "ls -# -r",
    "\\rm -f a": "rm -f",
    "grep --color=auto -d, 'a b' x | head -5": "grep --color -d; head -#",
    "cut -d',' -f1": "cut -d -f",
    "echo a | sort --key=\"2\" -- -x": "echo; sort --key",
    "echo '-n'": "echo",
    "find . -name '*.log' -mtime -7 -perm -u+x -print0": "find -mtime -name -perm -print0",
    "find . -type f -exec rm -rf {} \\; -delete": "find -delete -exec -type; rm -f -r",
    "find . -exec grep -q x {} ';' -execdir ls -l {} +": "find -exec -execdir; grep -q; ls -l",
    "find . -name x | xargs -0 -I {} cp -p {} /tmp": "find -name; xargs -# -I; cp -p",
    "xargs -n 1 -P4 sh -c 'mv -n \"$1\" a' _": "xargs -P -n; sh -c; mv -n",
    "sudo -u root apt-get install -y vim": "apt-get -y install",
    "sudo -i": "sudo -i",
    "env LANG=C FOO=1 sort -u": "sort -u",
    "env": "env",
    "LANG=C sort -u x": "sort -u",
    "time nice -n 10 make -j4": "nice -n; make -j",
    "timeout -k 5 10s curl -s x": "timeout -k; curl -s",
    "watch -n 5 'df -h | tail'": "watch -n; df -h; tail",
    "bash -c 'ls -l | wc'": "bash -c; ls -l; wc",
    "bash script.sh -c": "bash -c",
    "tar xzf a.tar.gz": "tar -f -x -z",
    "ps aux": "ps -a -u -x",
    "git commit -m 'a -b'": "git -m commit",
    "java -jar a.jar": "java -jar",
    "[ -f x ] && rm x": "test -f; rm",
    "[[ -z $x ]] || exit": "test -z; exit",
    "export A=$(date -u)": "export; date -u",
    "rm $(find . -type f) > out": "rm; find -type",
    "diff <(sort -u a) b": "diff; sort -u",
    "for f in *; do cp -v $f a; done": "cp -v",
    "A=1": "",
    "# a comment": "",
    "": "",
}  # fmt: skip


@pytest.mark.parametrize("command", READ)
def test_utilities_and_flags(command: str) -> None:
    """Short flags apart, long ones without values, quoted data left alone, and commands inside commands."""
    found = utilities_and_flags(command)
    assert found is not None
    assert "; ".join(" ".join([utility.name, *sorted(utility.flags)]) for utility in found) == READ[command]


@pytest.mark.parametrize("command", ["if", "ls | | wc", "echo 'a", "$(ls", "for x in; do"])
def test_what_does_not_parse_calls_nothing(command: str) -> None:
    """None, which is like no command."""
    assert utilities_and_flags(command) is None


@given(st.text(st.sampled_from("ls -a|;&$(){}[]'\"`\\\n#find exec xargs sudo") | st.characters(), max_size=60))
@settings(max_examples=150, deadline=None)
def test_any_text_can_be_read(text: str) -> None:
    """A model writes anything, lone surrogates aside."""
    found = utilities_and_flags(text)
    assert found is None or all(utility.name for utility in found)


def test_characters_beyond_ascii_do_not_kill() -> None:
    """The grammar's scanner reads beyond a table's end for them, which is fatal or not by where the process lies in memory."""
    read = "from mlx_codegen.evaluation.shell_parse import utilities_and_flags as read\n"
    read += "for code in range(0x80, 0x110000, 997): read('echo {' + chr(code)), read('{1' + chr(code))"
    for _ in range(6):
        subprocess.run([sys.executable, "-c", read], check=True)


def test_words_beyond_ascii_are_words() -> None:
    """They neither split a word nor begin an assignment."""
    found = utilities_and_flags("écho=1 -l 'naïve file' | grep -é ü")
    assert found == [Utility(".cho=1", frozenset({"-l"})), Utility("grep", frozenset({"-."}))]


@pytest.mark.parametrize("text", ["sudo " * 2000 + "ls", "$(" * 1500 + "ls" + ")" * 1500, "ls" + " && ls" * 3000])
def test_models_that_repeat_themselves_break_nothing(text: str) -> None:
    """However deep it goes."""
    assert utilities_and_flags(text) is None or len(utilities_and_flags(text) or []) >= 1


@pytest.mark.parametrize(
    ("wanted", "written", "expected"),
    [
        ("ls -la", "ls -a -l", (1, 1, 1, 1)),
        ("ls -la", "ls -l", (1, 1, 0, 0)),
        ("ls -l | wc -l", "ls -l", (1, 0.5, 1, 0)),
        ("ls -l", "ls -l | wc | sort | uniq", (1, 0.25, 1, 0)),
        ("ls | wc", "wc | ls", (0, 1, 0, 0)),
        ("git push", "git pull", (1, 1, 0, 0)),
        ("ls", "", (0, 0, 0, 0)),
    ],
)
def test_likeness(wanted: str, written: str, expected: tuple[float, ...]) -> None:
    """Listing more utilities gains nothing."""
    found = likeness(utilities_and_flags(wanted) or [], utilities_and_flags(written) or [])
    assert tuple(found.values()) == expected


def pair(prompt: str, command: str) -> Rendering:
    return Rendering("pairs", "pairs", "command", prompt, command, {}, {}, frozenset(), "test")


def answered(prompt: str, command: str, answer: str) -> Sample:
    return Sample(pair(prompt, command), False, Completion(f"# {prompt}\n", answer, 5, True, -1.0))


def test_copied_values() -> None:
    """Values that request and wanted command share; those that a comment repeats are not in the command."""
    prompt, wanted = "Find *.log files in /var/spool/app older than 30 days", "find /var/spool/app -name '*.log' -mtime +30\n"
    assert copied_values(answered(prompt, wanted, wanted), WORDS) == [1.0, 1.0, 1.0]
    assert copied_values(answered(prompt, wanted, "find /var/spool/app -name '*.txt' -mtime +30"), WORDS) == [1.0, 1.0, 0.0]
    assert copied_values(answered(prompt, wanted, f"# {prompt}\n"), WORDS) == [0.0, 0.0, 0.0]
    assert copied_values(answered("List files", "ls\n", "ls"), WORDS) == []


def test_exact_match_and_bleu() -> None:
    """White space does not count, anything more does; equal texts have 100, others the figure of sacrebleu's own line."""
    same = [answered("List", "ls  -la | sort -u\n", "ls -la |\tsort -u\n")] * 3
    figure, signature = bleu(same)
    assert all(map(is_exact, same)) and figure.value == pytest.approx(100) and figure.samples == 3
    assert "tok:intl" in signature and figure.low <= figure.value <= figure.high + 1e-6
    assert not is_exact(answered("List", "ls -la", "ls -la\nls"))
    assert bleu([answered("List", "find /tmp -name x", "echo done")])[0].value < 10


def test_pairs_are_one_line_commands_with_a_request() -> None:
    """No scripts, no stories, no longer answers."""
    assert one_line_pair("# List files\nls -l\n") == ("List files", "ls -l\n")
    assert one_line_pair("# List files\n# as a table\nls -l\n") == ("List files\nas a table", "ls -l\n")
    for other in ("#!/bin/bash\n# List\nls\n", "ls\n", "# List\nls\nls\n", "# List\n", ""):
        assert one_line_pair(other) is None, other


PAIR_LIST = [(f"Show file {number}", f"cat file{number}.txt") for number in range(900)] + [
    (f"SHOW file  {number}.", f"less file{number}.txt") for number in range(0, 900, 3)
]


def write_pairs(file: Path, pairs: list[tuple[str, str]]) -> Path:
    file.write_text("".join(json.dumps({"prompt": prompt, "command": command}) + "\n" for prompt, command in pairs))
    return file


def held_out(pairs: list[tuple[str, str]], fraction: float) -> list[tuple[str, str]]:
    return [each for each in pairs if split_of(document_hash(pair_document(*each)), fraction) == "validation"]


@pytest.fixture
def context_of(trained_run: TrainedRun) -> Callable[..., Context]:
    engine = mlx_codegen.load(trained_run.folder.path)
    return lambda **values: Context(engine, TASKS, Settings(max_tokens=4, **values))


def test_pairs_of_a_file_are_held_out_as_in_training(context_of: Callable[..., Context], tmp_path: Path) -> None:
    """By the hash of the pair, at the run's own share; a request that training pairs have, too, is left out and counted."""
    file, notes = write_pairs(tmp_path / "my pairs.jsonl", PAIR_LIST), []  # type: ignore[var-annotated]
    sets = pair_sets(context_of(pairs=(str(file),)), notes)
    expected = held_out(PAIR_LIST, 0.1)
    number = {each: "".join(filter(str.isdigit, each[0])) for each in PAIR_LIST}
    trained = {number[each] for each in PAIR_LIST if each not in expected}
    new = {number[each] for each in expected if number[each] not in trained}
    assert list(sets) == ["my-pairs"] and 30 < len(new) <= PAIRS
    assert {"".join(filter(str.isdigit, rendering.prompt)) for rendering in sets["my-pairs"]} == new
    left_out = len({number[each] for each in expected}) - len(new)
    assert (
        f"of {len(new) + left_out} held-out requests, {left_out} are in training with another answer" in notes[0] and left_out > 5
    )


def test_a_large_source_gives_a_sample_that_the_seed_decides(context_of: Callable[..., Context], tmp_path: Path) -> None:
    """Bounded, and the same each time."""
    pairs = [(f"Print number {number}", f"echo {number}") for number in range(4000)]
    file = str(write_pairs(tmp_path / "many.jsonl", pairs))
    first, again, other = (pair_sets(context_of(pairs=(file,), seed=seed), [])["many"] for seed in (1, 1, 2))
    assert len(first) == PAIRS < len(held_out(pairs, 0.1)) and first == again != other


def test_pairs_come_from_the_sources_of_the_run(trained_run: TrainedRun, tmp_path: Path) -> None:
    """Those of its code phase, versions with fresh values aside; one that is gone is named."""
    values = run_values()
    file = write_pairs(tmp_path / "pairs.jsonl", PAIR_LIST[:900])
    sources = [
        {"name": "mine", "path": str(file), "fresh_values": 0.9, "versions": 4},
        {"name": "gone", "path": str(tmp_path / "gone.jsonl")},
        {"name": "stories", "path": str(write_pairs(tmp_path / "none.jsonl", [])), "text_column": "text"},
        {"name": "bash", "bundled": "bash"},
    ]
    values["phases"]["code"] |= {"sources": sources, "validation_fraction": 0.2}
    checkpoint = load_checkpoint(trained_run.folder.checkpoint("code", "best"))
    weights = tmp_path / "model.safetensors"
    save_checkpoint(weights, checkpoint.build_model(), checkpoint.tokenizer, build_run_config(values), Progress("code"))
    notes: list[str] = []
    sets = pair_sets(Context(mlx_codegen.load(weights), TASKS, Settings()), notes)
    expected = {f"{command}\n" for _, command in held_out(PAIR_LIST[:900], 0.2)}
    assert list(sets) == ["mine"] and {rendering.script for rendering in sets["mine"]} == expected
    assert len(notes) == 1 and notes[0].startswith("gone is left out: no file or folder")


def test_without_pairs_the_bundled_commands_are_measured(context_of: Callable[..., Context]) -> None:
    """And a note says so."""
    context = context_of()
    context.tasks = [task for task in TASKS if task.file.kind == "command"][::6]
    context.renderings = [r for r in context.renderings if len(r.prompt) < 40][:30]
    result = measure_commands(context)
    commands_only = [rendering for rendering in context.renderings if rendering.kind == "command"]
    assert result.figures["exact match, bundled"].samples == len(commands_only) > 0
    assert "bundled one-line tasks" in " ".join(result.notes) and "at temperature 0" in " ".join(result.notes)
    assert all(0 <= figure.value <= 0.2 for name, figure in result.figures.items() if figure.unit == "%" and figure.samples)


def test_a_missing_library_leaves_the_part_out(context_of: Callable[..., Context], monkeypatch: pytest.MonkeyPatch) -> None:
    """With the line that brings it; the rest of an evaluation runs."""
    monkeypatch.setattr(commands, "find_spec", lambda name: None)
    result = measure_commands(context_of())
    assert result.figures == {}
    assert result.notes == ["left out: sacrebleu is not installed; pip install 'mlx-codegen[evaluate]'"]


def test_evaluate_with_pairs(trained_run: TrainedRun, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """As a person would call it; a file without pairs is one line."""
    arguments = [
        "evaluate",
        str(trained_run.folder.path),
        "--only",
        "commands",
        "--max-tokens",
        "4",
        "--output",
        str(tmp_path / "out"),
    ]
    file = write_pairs(tmp_path / "pairs.jsonl", PAIR_LIST[:300])
    assert command_line([*arguments, "--pairs", str(file)]) == 0
    figures = json.loads((tmp_path / "out" / "report.json").read_text())["parts"][0]["figures"]
    assert figures["same utility, pairs"]["samples"] == len(held_out(PAIR_LIST[:300], 0.1))
    capfd.readouterr()
    (tmp_path / "text.jsonl").write_text('{"text": "Once upon a time"}\n')
    for bad, message in (("text.jsonl", "no pairs in it"), ("gone.jsonl", "no file or folder")):
        assert command_line([*arguments, "--pairs", str(tmp_path / bad)]) == 2
        assert message in capfd.readouterr().err
