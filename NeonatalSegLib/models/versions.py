"""The user's own models as the panel lists them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.models.scores import Scores


@dataclass(frozen=True)
class Version:
    """A model of the user's store: ``state`` is "candidate" or "accepted"."""

    name: str
    state: str
    strategy: str = ""
    parent: str = ""
    scores: Scores = field(default_factory=Scores)
    keep: str = "everything"  # what it was made for, see FineTuningSettings

    @property
    def label(self) -> str:
        """For the list: "neonatal-t1t2-ft001 (candidate)"."""
        return f"{self.name} ({self.state})"


def list_versions() -> list[Version]:
    """The user's own models, sorted by name, so that the newest of a family is the last."""
    from NeonatalSegLib.models.registry import list_models
    from NeonatalSegLib.models.store import SHIPPED, status

    versions = []
    for model in list_models():
        with suppress(NeonatalSegError):  # another process has just removed it
            if (state := status(model.name)) != SHIPPED:
                lineage = model.metadata["neonatalseg"].get("lineage") or {}
                made = str(lineage.get("strategy", "")), str(lineage.get("parent", ""))
                keep = str((lineage.get("settings") or {}).get("keep") or "everything")
                versions.append(Version(model.name, state, *made, Scores.of(lineage), keep))
    return versions
