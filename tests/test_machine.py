"""`mlx-codegen doctor` is what one reads when things are broken: it must answer, and be right, on a bare machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_codegen import backend, machine

ROOT = Path(__file__).parents[1]


def doctor(folder: Path, code: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """The real command in a process of its own, in `folder`; `code` runs there first."""
    script = f"{code}\nimport sys\nfrom mlx_codegen.cli.main import run\nsys.exit(run(['doctor']))"
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([sys.executable, "-c", script], cwd=folder, env=variables, capture_output=True, text=True)


def cells(printed: str) -> dict[str, list[str]]:
    """Rows of the table by what they are about: mark, found, advice."""
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines() if line.startswith("│")]
    return {what: [mark, found, advice] for mark, what, found, advice in rows}


def test_every_finding_says_what_was_found() -> None:
    findings = machine.machine_report()
    assert len({finding.what for finding in findings}) == len(findings) >= 10
    assert all(finding.what and finding.found for finding in findings)


def test_the_table_has_every_finding_and_advice_exactly_where_the_mark_warns(tmp_path: Path) -> None:
    result = doctor(tmp_path)
    rows = cells(result.stdout)
    assert set(rows) == {finding.what for finding in machine.machine_report()}
    assert all((mark == "!!") == bool(advice) for mark, _, advice in rows.values())
    assert not result.stderr


def test_missing_tools_are_named_with_what_to_install(tmp_path: Path) -> None:
    """An empty PATH: no bash, no compiler, no checker. They are optional, so the exit status stays 0."""
    result = doctor(tmp_path, PATH=str(tmp_path))
    rows = cells(result.stdout)
    for what, word in (("bash", "package manager"), ("shellcheck", "install shellcheck"), ("sandbox", "")):
        mark, found, advice = rows[what]
        assert mark == "!!" and "not found" in found and word in advice, what
    assert result.returncode == 0


def test_a_tool_that_fails_or_hangs_up_is_no_crash(tmp_path: Path) -> None:
    """Programs by the right names that print bytes of no encoding and fail."""
    for name in ("bash", "shellcheck", "bwrap", "g++", "sandbox-exec"):
        tool = tmp_path / name
        tool.write_bytes(b"#!" + sys.executable.encode() + b"\nimport os\nos.write(1, b'\\xff\\xfe')\nraise SystemExit(3)\n")
        tool.chmod(0o755)
    result = doctor(tmp_path, PATH=str(tmp_path))
    assert cells(result.stdout)["shellcheck"][1] == "shellcheck, found"
    assert "Traceback" not in result.stderr
    if sys.platform == "linux":
        assert "cannot run here" in cells(result.stdout)["sandbox"][1]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux wheels of MLX come with a slow BLAS")
def test_blas_is_reported_fast_when_loaded_in_time_and_slow_when_too_late(tmp_path: Path) -> None:
    in_time = cells(doctor(tmp_path).stdout)["BLAS"]
    assert (in_time[0] == "ok") == backend.load_fast_blas().fast
    too_late = doctor(tmp_path, "import mlx.core")
    mark, found, advice = cells(too_late.stdout)["BLAS"]
    assert mark == "!!" and "slow" in found and "before mlx.core" in advice
    assert too_late.returncode == 1


def test_a_working_folder_that_is_gone_is_a_finding(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    result = doctor(gone, f"import os; os.rmdir({str(gone)!r})")
    mark, found, advice = cells(result.stdout)["disk"]
    assert (mark, found) == ("!!", "unknown") and "FileNotFoundError" in advice
    assert "Traceback" not in result.stderr


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a folder that nobody can write to, root included")
def test_a_read_only_working_folder_is_named(tmp_path: Path) -> None:
    """Training here would fail when it makes runs/; the exit status says so too."""
    result = doctor(Path("/proc"))
    mark, found, advice = cells(result.stdout)["free disk"]
    assert mark == "!!" and "/proc cannot be written to" in found and "runs/" in advice
    assert result.returncode == 1
