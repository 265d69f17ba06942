"""The table of faults that is shown at the end of `make test-faults`: what was done, how often, what was lost."""

import pytest
from fault_processes import Note

ROWS = pytest.StashKey[list[tuple[str, int, str]]]()


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Note:
    """Adds a line to the table: what was done, how often, what was measured to be lost."""
    rows = request.config.stash.setdefault(ROWS, [])
    return lambda what, times, lost: rows.append((what, times, lost))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash.get(ROWS, [])
    if not rows or config.getoption("markexpr"):  # `make test` has no room for it
        return
    width = max(len(what) for what, _, _ in rows)
    terminalreporter.section("faults")
    terminalreporter.write_line(f"{'what was done':{width}}  times  what was lost")
    for what, times, lost in rows:
        terminalreporter.write_line(f"{what:{width}}  {times:5}  {lost}")
