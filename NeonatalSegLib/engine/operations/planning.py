"""Operations of the worker on studies: planning which slices are to be annotated."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from NeonatalSegLib.errors import NeonatalSegError

if TYPE_CHECKING:
    from NeonatalSegLib.engine.operations.job import Job, WarmModels


def plan(job: Job, models: WarmModels) -> dict[str, Any]:
    """Plan the slices of a study, pre-fill them and create the study's folder: all of it or nothing.

    Fields: ``study`` (a missing or empty folder), ``scans`` (list of {name, t1, t2, age_weeks}; paths or null),
    ``settings`` (of BudgetSettings), ``model`` (name or path, null for the default), ``device``, ``prefill`` ("model"
    or "empty"), ``earlier`` (folders of earlier rounds, null for none), ``predicted`` (null, or {label_maps: {scan:
    path}, model_hash}: results that are used where this model made them).

    Result: ``study``, ``slices`` (how many were planned), ``model_name``, ``model_hash`` ("" where no model was
    needed), ``warnings``.
    """
    from NeonatalSegLib.annotation.new_study import (
        Predicted,
        can_reuse,
        check_folder,
        check_scans,
        fitting,
        needs_model,
        scan_of_json,
        start_study,
    )
    from NeonatalSegLib.annotation.plan import BudgetSettings
    from NeonatalSegLib.models.registry import current_model, find_model

    study = job.fields.get("study")
    if not study:
        raise NeonatalSegError("The request names no folder for the study.")
    settings = BudgetSettings.from_json(job.fields.get("settings") or {})
    prefill = job.fields.get("prefill") or "model"
    scans = [scan_of_json(entry) for entry in job.fields.get("scans") or []]
    check_folder(Path(study))  # before the model is loaded
    check_scans(scans)
    segmenter, warnings, predicted = None, [], None
    if (given := job.fields.get("predicted")) and can_reuse(settings):
        model = find_model(job.fields.get("model") or None)
        if given["model_hash"] == model.hash:
            files = {name: Path(path) for name, path in given["label_maps"].items()}
            predicted = Predicted(files, model.name, model.hash)
    ready = predicted is not None and len(fitting(predicted, scans)) == len(scans)
    if needs_model(settings, prefill) and not ready:
        job.progress("load model", 0.0)
        segmenter, _ = models.get(job.fields.get("model"), job.fields.get("device") or "auto")
        if not job.fields.get("model"):
            warnings = current_model()[1]  # such as: the accepted model is gone
    started = start_study(
        study,
        scans,
        settings,
        segmenter=segmenter,
        predicted=predicted,
        prefill=prefill,
        earlier=job.fields.get("earlier") or (),
        progress=job.progress,
    )
    return {
        "study": str(started.folder),
        "slices": len(started.plan.slices),
        "model_name": started.model_name,
        "model_hash": started.model_hash,
        "warnings": [*warnings, *started.warnings],
    }
