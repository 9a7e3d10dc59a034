"""What every operation gets: the request as a job, and the models that are loaded already."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from NeonatalSegLib.segmentation.segmenter import Segmenter, SegmentOptions


class Job(Protocol):
    """One request as an operation sees it."""

    fields: dict[str, Any]

    @property
    def folder(self) -> Path:
        """Where the operation's files go; NeonatalSegError where the request named none."""

    @property
    def stop_asked(self) -> bool:
        """True once the client wants the operation to end early with what it has."""

    def progress(self, stage: str, fraction: float, **more: Any) -> None:
        """Say how far the work is (fraction of the whole, 0-1) and more; raises Cancelled when it is to stop."""

    def expect(self, seconds: float | None) -> None:
        """Say how long the work takes from now on, where it is known from last time; None where it is not."""


class WarmModels:
    """Segmenters kept between requests, at most ``capacity`` of them: the least recently used goes first."""

    def __init__(self, capacity: int = 2) -> None:
        self._capacity = capacity
        self._segmenters: OrderedDict[tuple[str, ...], Segmenter] = OrderedDict()
        # How long the last segmentation with this segmenter and these options took: the next one's time left.
        self.seconds: dict[tuple[int, SegmentOptions], float] = {}

    def get(self, model: str | None, device: str, engine: str = "auto") -> tuple[Segmenter, bool]:
        """The segmenter for a model's name or path on a device, and whether it was already loaded."""
        from NeonatalSegLib.models.registry import find_model
        from NeonatalSegLib.segmentation.segmenter import Segmenter

        found = find_model(model or None)
        # The hash is in the key: a model that was fine-tuned under the same name is another model.
        key = (str(found.folder), found.hash, device, engine)
        warm = key in self._segmenters
        if not warm:
            self._segmenters[key] = Segmenter(found, device, engine)
        self._segmenters.move_to_end(key)
        while len(self._segmenters) > self._capacity:
            dropped = self._segmenters.popitem(last=False)[1]
            self.seconds = {key: value for key, value in self.seconds.items() if key[0] != id(dropped)}
        return self._segmenters[key], warm


Operation = Callable[[Job, WarmModels], "dict[str, Any]"]
