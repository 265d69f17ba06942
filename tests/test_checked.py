"""Checked output: what is handed over parses, the best is chosen, torn text is cut whole."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_run import TrainedRun

import mlx_codegen
from mlx_codegen.generation import checked, verify
from mlx_codegen.generation.checked import best_of, check, cut_whole, does_something, valid
from mlx_codegen.generation.engine import Completion, Engine
from mlx_codegen.generation.verify import shellcheck, shellcheck_path, syntax_error

needs_shellcheck = pytest.mark.skipif(shellcheck_path() is None, reason="no shellcheck")
PROMPT = "#!/bin/bash\n# Do it\n"
SCRIPT = """set -euo pipefail

for file in *.txt; do
    if [[ -s "$file" ]]; then
        cat <<EOF > "$file.new"
$(wc -l < "$file") lines
EOF
    fi
done
case ${1:-} in
    a) echo "one" ;;
    *) echo 'two' ;;
esac
"""


def completion(answer: str, *, ended: bool = True, logprob: float = -1.0) -> Completion:
    return Completion(PROMPT, answer, len(answer.split()) + 1, ended, logprob)


@pytest.fixture(scope="module")
def engine(trained_run: TrainedRun) -> Engine:
    return mlx_codegen.load(trained_run.folder.path)


# --- bash -n and shellcheck ---


def test_syntax_error_is_one_line_without_a_file() -> None:
    """What a person can act on: the line and the reason."""
    assert syntax_error(PROMPT + SCRIPT) is None
    assert syntax_error("") is None
    assert syntax_error("if true; then\n") == "line 2: syntax error: unexpected end of file"
    assert "unexpected EOF while looking for matching" in (syntax_error("echo 'open\n") or "")
    assert "here-document" in (syntax_error("cat <<EOF\nopen\n") or ""), "bash warns only, and yet it is torn"
    assert syntax_error("echo a\0b") == "line 1: a NUL byte, which no script can hold"
    assert syntax_error("echo \udc80") is None


def test_checking_runs_nothing(tmp_path: Path) -> None:
    """A script that is looked at does not leave a trace."""
    script = f"touch {tmp_path}/ran; $(touch {tmp_path}/ran2)\nexit 3\n"
    assert syntax_error(script) is None
    if shellcheck_path():
        shellcheck([script])
    assert list(tmp_path.iterdir()) == []


@needs_shellcheck
def test_shellcheck_tells_scripts_apart() -> None:
    """Findings belong to their script, and only those of the severity asked for or worse are given."""
    clean, unquoted, broken = 'echo "$1"\n', "#!/bin/bash\nrm $1\n", "if true; then\n"
    found = shellcheck([clean, unquoted, broken])
    assert found[0] == [] and [finding.code for finding in found[1]] == [2086]
    assert found[1][0].line == 2 and found[1][0].severity == "info"
    assert any(finding.severity == "error" for finding in found[2])
    assert shellcheck([clean, unquoted], "warning") == [[], []]
    assert shellcheck(["# /srv/slow.sh should end after 5 seconds\ntimeout 5 /srv/slow.sh\n"]) == [[]], "a request is no shebang"
    assert [finding.code for finding in shellcheck(["#/bin/bash\nls\n"])[0]] == [1113]
    assert shellcheck([]) == []


@needs_shellcheck
def test_shellcheck_is_not_stopped_by_one_script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Many scripts, any characters, and one that the program itself breaks on: the others keep their findings."""
    program = shellcheck_path()
    wrapper = tmp_path / "shellcheck"
    wrapper.write_text(f'#!/bin/bash\ngrep -qs BREAK -- "$@" && exit 3\nexec {program} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setattr(verify, "shellcheck_path", lambda: str(wrapper))
    scripts = ["rm $1\n", "echo '漢\x9b\x07é\udcff'\n", "# BREAK\n", *["rm $1\n"] * 70]
    found = shellcheck(scripts)
    assert [len(findings) for findings in found] == [1, 0, 1, *[1] * 70]
    assert found[2][0].severity == "error" and found[3][0].code == 2086


def test_missing_shellcheck_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line says how to install it; ranking goes on without."""
    monkeypatch.setattr(verify, "shellcheck_path", lambda: None)
    monkeypatch.setattr(checked, "shellcheck_path", lambda: None)
    with pytest.raises(verify.UserError, match="shellcheck is not installed; install it: pip install"):
        shellcheck(["true"])
    (candidate,) = check([completion("rm $1\n")], [0])
    assert candidate.error is None and candidate.findings == []


# --- torn text ---


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(SCRIPT)))
def test_a_script_torn_anywhere_is_cut_whole(length: int) -> None:
    """What is left parses, is a beginning of the script, ends in a newline, and holds every complete command before the tear."""
    cut = cut_whole(completion(SCRIPT[:length], ended=False)).answer
    assert SCRIPT.startswith(cut) and (not cut or cut.endswith("\n"))
    assert syntax_error(PROMPT + cut) is None
    if length > SCRIPT.index("for"):
        assert cut.startswith("set -euo pipefail\n")
    if length > SCRIPT.index("case") + 4:
        assert "done\n" in cut


def test_a_last_line_that_parses_may_still_be_torn() -> None:
    """`rm -rf /srv/data/old` cut to `rm -rf /srv/data` parses and must never be handed over."""
    assert cut_whole(completion("cd /srv\nrm -rf /srv/data", ended=False)).answer == "cd /srv\n"
    assert not does_something(cut_whole(completion("rm -rf /srv/data", ended=False)))


# --- choosing ---


@needs_shellcheck
def test_ranking() -> None:
    """What parses comes before what does not, fewer findings before more, a surer model before a less sure one."""
    texts = [
        completion("if true; then\n", logprob=-0.01),
        completion('rm "$1"\n', logprob=-0.5),
        completion("rm $1\n", logprob=-0.4),
        completion('rm "$1"\n', logprob=-0.2),
        completion("# nothing but a comment\n", logprob=-0.01),
    ]
    candidates = check(texts, [0, 1, 2, 3, 4])
    assert [candidate.error is None for candidate in candidates] == [False, True, True, True, False]
    good = sorted((c for c in candidates if c.error is None), key=lambda c: -c.rank)
    assert [c.seed for c in good] == [3, 1, 2]


def test_best_of_counts_and_repeats(engine: Engine) -> None:
    """The same seed chooses the same text, which is the one that its own seed gives alone; the failed are counted."""
    first, again = (best_of(engine, "Create a backup script", 6, seed=3, max_tokens=40) for _ in range(2))
    assert first == again and first.written == 6 and 0 <= first.failed <= 6 and first.tokens > 6
    if first.best is not None and first.best.completion.ended:
        alone = engine.generate("Create a backup script", seed=first.best.seed, max_tokens=40)
        assert alone == first.best.completion.text


@pytest.mark.parametrize("seed", range(4))
def test_valid_is_valid_or_nothing(engine: Engine, seed: int) -> None:
    """However bad the model: what comes out parses and does something, or nothing comes out."""
    chosen = valid(engine, "Count the files in /srv", seed=seed, max_tokens=30, temperature=1.5, top_k=0, top_p=1.0)
    if chosen.best is None:
        assert chosen.failed == chosen.written == checked.BATCH * checked.MOST_BATCHES
    else:
        assert syntax_error(chosen.best.completion.text) is None and does_something(chosen.best.completion)
        bash = subprocess.run(["bash", "-n"], input=chosen.best.completion.text, capture_output=True, text=True, check=False)
        assert bash.returncode == 0


def test_valid_gives_up_in_the_end(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that never writes bash costs a limited number of texts."""
    monkeypatch.setattr(checked, "syntax_error", lambda script: "line 1: no")
    chosen = valid(engine, "x", seed=0, max_tokens=4)
    assert chosen.best is None and chosen.written == chosen.failed == checked.BATCH * checked.MOST_BATCHES


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(tmp_path)
    yield
    os.chdir(before)
