"""Where the files lie that came with NeonatalSeg: models, terminology, colour table, settings."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
# Beside the package in a checkout and in Slicer, inside it when installed by pip.
_CANDIDATES = (_PACKAGE.parent / "Resources", _PACKAGE / "Resources")
_MARK = "NeonatalSeg.term.json"  # beside an installed package another one's Resources may lie


def resources_folder() -> Path:
    """The folder ``Resources``; where none is found, the place where a checkout has it.

    Example:
        >>> sorted(path.name for path in resources_folder().glob("NeonatalSeg.*"))
        ['NeonatalSeg.ctbl', 'NeonatalSeg.term.json']
    """
    return next((folder for folder in _CANDIDATES if (folder / _MARK).is_file()), _CANDIDATES[0])


def shipped_models() -> Path:
    """The folder of the models that came with NeonatalSeg, one bundle each; they are only read."""
    return resources_folder() / "Models"


def bundle_config() -> Path:
    """How MONAI runs any model of NeonatalSeg: the ``configs/inference.json`` of every bundle."""
    return resources_folder() / "Bundle" / "inference.json"


def terminology_file() -> Path:
    """Slicer's terminology context with the eight tissues."""
    return resources_folder() / _MARK
