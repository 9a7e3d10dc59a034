"""Fine-tuning in the compute process: which strategies there are for a model, and one run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from NeonatalSegLib.engine.operations.job import Job, WarmModels


def strategies(job: Job, models: WarmModels) -> dict[str, Any]:
    """What each strategy would train in a model.

    Fields: ``model`` (name or path, null for the user's default).
    Result: ``model_name``; ``strategies``, a list of {name, text, trained, total, percent}.
    """
    from NeonatalSegLib.models.registry import default_model_name, find_model
    from NeonatalSegLib.networks.network import build_network
    from NeonatalSegLib.networks.strategies import STRATEGIES, trainable_parameters

    model = find_model(job.fields.get("model") or default_model_name())
    network = build_network(model.network)
    told = []
    for name, text in STRATEGIES.items():
        chosen = trainable_parameters(network, model.network, name)
        told.append(
            {"name": name, "text": text, "trained": chosen.trained, "total": chosen.total, "percent": chosen.percent}
        )
    return {"model_name": model.name, "strategies": told}


def finetune(job: Job, models: WarmModels) -> dict[str, Any]:
    """Fine-tune a model on the completed slices of a study and keep the result as a candidate in the store.

    Fields: ``study`` (folder), ``earlier`` (folders of earlier rounds, null for none), ``raters`` (list, null for all),
    ``model`` (name or path, null for the user's default), ``settings`` (fields of FineTuningSettings), ``rehearsal``
    (folder of prepared arrays, null for synthetic newborns), ``device``.

    Progress carries ``step``, ``steps``, ``loss`` and ``held_out_dsc`` (null where not measured) while it trains.

    Result: the lineage's entries (see FineTuned.lineage) without the list of settings, and ``model`` (the candidate's
    name; null for the strategy none, which makes nothing), ``folder``, ``history`` ([step, loss, DSC or null]),
    ``warnings``. A run that was stopped early ends with the best so far, as a result; a cancelled one leaves nothing.
    """
    from NeonatalSegLib.annotation.completed import read_rounds
    from NeonatalSegLib.finetuning.run import finetune as run
    from NeonatalSegLib.finetuning.run import read_rehearsal
    from NeonatalSegLib.finetuning.settings import FineTuningSettings
    from NeonatalSegLib.models.history import check_writable
    from NeonatalSegLib.models.registry import default_model_name, find_model

    fields = job.fields
    job.progress("read", 0.0)
    settings = FineTuningSettings.from_json(fields.get("settings") or {})
    model = find_model(fields.get("model") or default_model_name())
    annotated = read_rounds(fields["study"], fields.get("earlier") or (), fields.get("raters"))
    if settings.strategy != "none":
        check_writable()

    def report(stage: str, fraction: float, facts: Mapping[str, Any]) -> None:
        job.progress(stage, fraction, **facts)

    done = run(
        model,
        annotated,
        settings,
        rehearsal=read_rehearsal(fields["rehearsal"], model.spacing_mm) if fields.get("rehearsal") else None,
        device=fields.get("device") or "auto",
        report=report,
        should_stop=lambda: job.stop_asked,
    )
    lineage = done.lineage()
    kept = None
    if settings.strategy != "none" and done.adapted.history:
        job.progress("write", 1.0)
        kept = done.save()
    return {
        **{key: value for key, value in lineage.items() if key != "settings"},
        "trained": lineage["parameters_trained"],
        "total": lineage["parameters_total"],
        "slices": len(done.learned),
        "held_out_slices": len(done.held_out),
        "model": kept.name if kept else None,
        "folder": str(kept.folder) if kept else None,
        "history": [list(entry) for entry in done.adapted.history],
        "warnings": done.adapted.warnings,
    }
