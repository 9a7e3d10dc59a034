"""NeonatalSegLib: everything of NeonatalSeg that computes, usable from a Python prompt without Slicer.

``from NeonatalSegLib import Segmenter, load_scan``: the names below are the public ones (docs/api.md), each loaded from
its room when it is first asked for. Importing the package itself loads nothing. Research use only, not for diagnosis.

Example:
    >>> from NeonatalSegLib import TISSUES
    >>> TISSUES[3].name
    'White matter'
"""

from typing import Any

__version__ = "0.1.0"

# Public name: the module below NeonatalSegLib that it lives in. __init__.pyi says the same to type checkers.
_HOMES = {
    "AnnotatedScan": "annotation.completed",
    "AnnotationSession": "annotation.session",
    "BudgetSettings": "annotation.plan",
    "Cancelled": "errors",
    "Client": "engine.client",
    "Evaluation": "evaluation.tables",
    "FineTuningSettings": "finetuning.settings",
    "Grid": "scans.grid",
    "Model": "models.bundle",
    "NeonatalSegError": "errors",
    "Phantom": "datasets.phantom",
    "Plan": "annotation.plan",
    "ScanToPlan": "annotation.slice_selection",
    "Scan": "scans.scan",
    "SegmentOptions": "segmentation.segmenter",
    "Segmentation": "segmentation.segmenter",
    "Segmenter": "segmentation.segmenter",
    "StudyScan": "annotation.study",
    "Subject": "datasets.bids",
    "TISSUES": "tissues",
    "Tissue": "tissues",
    "TrainingSettings": "training.settings",
    "build_cache": "datasets.cache",
    "dice_per_class": "evaluation.metrics",
    "draw_newborn": "datasets.phantom",
    "evaluate_folders": "evaluation.folders",
    "find_model": "models.registry",
    "find_subjects": "datasets.bids",
    "finetune": "finetuning.run",
    "list_models": "models.registry",
    "load_scan": "scans.scan",
    "make_scan": "scans.scan",
    "mean_dice_no_background": "evaluation.metrics",
    "plan_slices": "annotation.planning",
    "read_annotations": "annotation.completed",
    "segment_to_folder": "segmentation.outputs",
    "start_study": "annotation.new_study",
    "surface_distances": "evaluation.metrics",
    "train": "training.run",
    "volumes_ml": "evaluation.metrics",
    "write_newborn": "datasets.phantom",
    "write_outputs": "segmentation.outputs",
}

__all__ = ["__version__", *_HOMES]  # all of them texts


def __getattr__(name: str) -> Any:
    """A public name, loaded when it is first asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
