"""The model of a step's time: what it must be by its own logic, and the page that is made with it."""

import importlib.util
from pathlib import Path

import pytest

from mlx_codegen.scaling import ETHERNET_10, LINKS, THUNDERBOLT_5, WIFI, Link, all_reduce_seconds, efficiency, step_seconds

ROOT = Path(__file__).parents[1]


def test_two_machines_send_the_whole_buffer_once() -> None:
    """2(n-1)/n is 1 for two, 1.5 for four; nothing is exchanged by one; each of the 2(n-1) messages waits for the one before."""
    line = Link("line", 1e9, 0.0)
    assert all_reduce_seconds(1, 8e9, line) == 0
    assert all_reduce_seconds(2, 8e9, line) == pytest.approx(8.0)
    assert all_reduce_seconds(4, 8e9, line) == pytest.approx(12.0)
    assert all_reduce_seconds(4, 0, Link("slow", 1e9, 0.5)) == pytest.approx(3.0)


def test_a_shared_channel_carries_the_bytes_of_all_twice() -> None:
    """Two stations send 8 GB each, and the access point sends them on: 32 GB through the air."""
    assert all_reduce_seconds(2, 8e9, Link("air", 1e9, 0.0, shared=True)) == pytest.approx(32.0)


def test_overlap_hides_the_shorter_part() -> None:
    assert step_seconds(3.0, 2.0, overlapped=False) == 5.0
    assert step_seconds(3.0, 2.0, overlapped=True) == 3.0
    assert step_seconds(2.0, 3.0, overlapped=True) == 3.0


def test_efficiency_falls_with_slower_links_and_more_machines() -> None:
    """And rises with more arithmetic for each exchange, which is what gradient_accumulation does."""
    size = 200e6
    at_two = [efficiency(0.3, 2, size, link) for link in LINKS]
    assert LINKS == (THUNDERBOLT_5, ETHERNET_10, WIFI)
    assert 1 > at_two[0] > at_two[1] > at_two[2] > 0
    assert efficiency(0.3, 8, size, ETHERNET_10) < at_two[1] < efficiency(1.2, 2, size, ETHERNET_10)
    assert efficiency(0.3, 1, size, WIFI) == 1.0


def test_the_page_holds_what_the_model_computes() -> None:
    """A link or configuration changed without `python docs/make_scaling_tables.py` is noticed."""
    spec = importlib.util.spec_from_file_location("make_scaling_tables", ROOT / "docs" / "make_scaling_tables.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (ROOT / "docs" / "SCALING.md").read_text(encoding="utf-8")
    found = module.MARKS.search(page)
    assert found is not None
    assert found[0] == found[1] + module.tables() + found[2]
