"""Tables of experiments, from known results."""

from __future__ import annotations

from typing import Any

import pytest

from NeonatalSegLib.experiments.tables import Spread, by_run, dsc_all, dsc_no_background, validation_and_test


def result(condition: str, number: int, test: list[list[float | None]]) -> dict[str, Any]:
    return {"condition": condition, "run": number, "subjects": [{"set": "test", "dsc": dsc} for dsc in test]}


def test_means_and_deviations_are_over_runs() -> None:
    """Two newborns in one run, one in the other; classes 0 and 4 are background; a class may be in neither map."""
    tissues = [1, 2, 3, 5, 6, 7, 8, 9]
    high: list[float | None] = [0.5 if i in tissues else 1.0 for i in range(10)]
    low: list[float | None] = [0.1 if i in tissues else 0.0 for i in range(10)]
    missing: list[float | None] = [0.9 if i in tissues else 0.4 for i in range(10)]
    missing[9] = None
    results = [result("a", 1, [missing]), result("a", 0, [high, low]), result("b", 0, [high])]
    # run 0: (0.5 + 0.1) / 2 = 0.3; run 1: 0.9; mean 0.6, SD sqrt(2 * 0.3 ** 2) = 0.424264
    assert by_run(results, "a", "test", dsc_no_background) == pytest.approx([0.3, 0.9])
    # run 0: (0.6 + 0.08) / 2 = 0.34; run 1: (7 * 0.9 + 2 * 0.4) / 9 = 0.788889
    assert by_run(results, "a", "test", dsc_all) == pytest.approx([0.34, 7.1 / 9])
    table = validation_and_test("T", results, {"a": "A", "b": "B"}, {"P": ("1", "2", "3", "4")})
    assert [str(cell) for cell in table.rows[0]] == ["A", "n/a", "n/a", "0.564 ± 0.317", "0.600 ± 0.424"]
    assert str(table.rows[1][4]) == "0.500"
    lines = [line.split("\t") for line in table.tsv().splitlines()]
    assert {len(line) for line in lines} == {13}
    assert lines[1][-3:] == ["0.600000", "0.424264", "2"]
    assert lines[2][-3:] == ["0.500000", "n/a", "1"]
    assert lines[3][0] == "paper: P" and lines[3][-3] == "4"
    assert "0.600 ± 0.424" in table.markdown()


def test_a_small_deviation_is_shown_with_the_digits_that_it_needs() -> None:
    assert str(Spread.of([0.9337, 0.9341, 0.9345])) == "0.934 ± 0.0004"
    assert str(Spread.of([0.1 + 0.2, 0.3, 0.3])) == "0.300 ± 0.000"
    assert str(Spread.of([0.90, 0.92])) == "0.910 ± 0.014"
    assert str(Spread.of([151, 151.5], 0)) == "151 ± 0.4"
