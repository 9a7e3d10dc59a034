"""The ten classes and the files of Resources/ that are made from them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from NeonatalSegLib import tissues
from NeonatalSegLib.tissues import PHYSIOLOGICAL, TISSUES, by_index, generated_files

RESOURCES = Path(__file__).resolve().parent.parent / "Resources"
PAPER = ["CSF", "cGM", "WM", "Ventr.", "Cereb.", "dGM", "BS", "Hippoc."]  # head of the paper's Table 2


def test_names_of_label_values_are_those_of_the_table() -> None:
    for tissue in tissues.TISSUES:
        assert getattr(tissues, tissue.key.upper()) == tissue.index == tissues.TISSUES.index(tissue)
    assert tissues.UNKNOWN not in {tissue.index for tissue in tissues.TISSUES}


def test_classes_are_the_papers() -> None:
    assert [t.index for t in TISSUES] == list(range(10))
    assert [t.abbreviation for t in PHYSIOLOGICAL] == PAPER
    assert [t.index for t in TISSUES if t.background] == [0, 4]


def test_names_and_colours_are_distinct() -> None:
    for what in ("key", "name", "abbreviation"):
        assert len({getattr(t, what) for t in TISSUES}) == 10
    assert len({t.colour for t in PHYSIOLOGICAL}) == 8
    assert len({t.snomed_code for t in PHYSIOLOGICAL}) == 8


def test_an_unknown_label_is_refused() -> None:
    with pytest.raises(IndexError, match="10"):
        by_index(10)


@pytest.mark.parametrize("name", sorted(generated_files()))
def test_resources_agree_with_the_table(name: str) -> None:
    """Run ``python -m NeonatalSegLib.tissues Resources`` after a change to the table."""
    assert (RESOURCES / name).read_text(encoding="utf-8") == generated_files()[name]


def test_terminology_has_a_code_for_every_tissue() -> None:
    context = json.loads((RESOURCES / "NeonatalSeg.term.json").read_text(encoding="utf-8"))
    types = context["SegmentationCodes"]["Category"][0]["Type"]
    assert [t["3dSlicerLabel"] for t in types] == [t.key for t in PHYSIOLOGICAL]
    assert all(re.fullmatch(r"\d{6,}", t["CodeValue"]) for t in types)
