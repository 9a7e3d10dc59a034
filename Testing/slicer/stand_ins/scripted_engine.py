"""A compute process that a test drives by hand: every event comes when the test says so.

It stands on the seam where the real client is injected, writes real files and checks the request as strictly as the
real one: unknown fields raise, files must be there and readable, nothing may be asked after the end.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from NeonatalSegLib.engine.protocol import Event
from NeonatalSegLib.tissues import TISSUES

HELLO = {
    "versions": {"NeonatalSeg": "0.1.0"},
    "devices": [
        {"name": "cuda", "text": "GPU: Made Up 9000", "works": True, "reason": ""},
        {"name": "cpu", "text": "CPU (2 threads)", "works": True, "reason": ""},
    ],
    "models": [
        {"name": "one", "description": "The first model.", "spacing_mm": [0.8, 0.8, 0.8], "hash": "1" * 64},
        {"name": "two", "description": "The second model.", "spacing_mm": [0.8, 0.8, 0.8], "hash": "2" * 64},
    ],
    "default_model": "one",
    "seconds": 0.1,
}


class ScriptedRequest:
    """A request whose events the test puts in."""

    def __init__(self, op: str, folder: Path, fields: dict[str, Any]) -> None:
        self.op, self.folder, self.fields = op, folder, fields
        self.cancel_asked = self.stop_asked = False
        self.released = False
        self._news: list[Event] = []

    def poll(self) -> list[Event]:
        news, self._news = self._news, []
        return news

    def cancel(self) -> None:
        self.cancel_asked = True

    def stop(self) -> None:
        self.stop_asked = True

    def release(self) -> None:
        self.released = True
        shutil.rmtree(self.folder, ignore_errors=True)

    def say(self, name: str, **fields: Any) -> None:
        """One event from the compute process."""
        self._news.append(Event(1, name, fields))

    def succeed(self, *, uncertainty: bool = False, **fields: Any) -> sitk.Image:
        """A result on the grid of the reference: stripes of all ten classes. Returns the label map."""
        reference = sitk.ReadImage(self.fields["t2"] or self.fields["t1"])
        shape = reference.GetSize()[::-1]
        array = (np.indices(shape).sum(axis=0) % 10).astype(np.uint8)
        label_map = sitk.GetImageFromArray(array)
        label_map.CopyInformation(reference)
        sitk.WriteImage(label_map, str(self.folder / "labels.nrrd"))
        entropy = self.folder / "uncertainty.nrrd"
        if uncertainty:
            image = sitk.GetImageFromArray((array / 9).astype(np.float32))
            image.CopyInformation(reference)
            sitk.WriteImage(image, str(entropy))
        voxel_ml = float(np.prod(reference.GetSpacing())) / 1000
        self.say(
            "result",
            label_map=str(self.folder / "labels.nrrd"),
            probabilities=None,
            uncertainty=str(entropy) if uncertainty else None,
            **{
                "volumes_ml": {t.key: float((array == t.index).sum()) * voxel_ml for t in TISSUES},
                "warnings": [],
                "times_s": {"network": 1.0},
                "warm": False,
                "device": "CPU (2 threads)",
                "model_name": "one",
                "model_hash": "1" * 64,
                "registration_quality": 1.2,
                **fields,
            },
        )
        return label_map


class ScriptedEngine:
    """The compute process of a test; ``requests`` are those asked so far, hellos among them."""

    OPTIONS = {"trust_headers", "n4", "flips", "probabilities", "uncertainty", "strict"}

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="scripted-")  # goes with this object, closed or not
        self.root = Path(self._folder.name)
        self.requests: list[ScriptedRequest] = []
        self.closed = False
        self.disk_full = False

    @property
    def last(self) -> ScriptedRequest:
        """The latest segmentation asked for."""
        return [request for request in self.requests if request.op == "segment"][-1]

    @property
    def hello(self) -> ScriptedRequest:
        """The latest question for devices."""
        return self.asked("hello")[-1]

    def asked(self, op: str) -> list[ScriptedRequest]:
        """All requests for one operation so far."""
        return [request for request in self.requests if request.op == op]

    def new_folder(self) -> Path:
        if self.disk_full:
            raise OSError(28, "No space left on device", str(self.root))
        return Path(tempfile.mkdtemp(dir=self.root))

    def request(self, op: str, *, folder: Path | None = None, **fields: Any) -> ScriptedRequest:
        assert not self.closed, "asked after close"
        request = ScriptedRequest(op, folder or self.new_folder(), fields)
        self.requests.append(request)
        return request

    def segment(
        self,
        t1: Any = None,
        t2: Any = None,
        *,
        model: str | None = None,
        device: str = "auto",
        options: dict[str, bool] | None = None,
        name: str | None = None,
        age_weeks: float | None = None,
        folder: Path | None = None,
    ) -> ScriptedRequest:
        assert set(options or {}) <= self.OPTIONS, options
        for path in (t1, t2):
            assert path is None or sitk.ReadImage(str(path)).GetDimension() == 3
        fields = {"model": model, "device": device, "options": options, "name": name}
        return self.request("segment", folder=folder, t1=t1, t2=t2, **fields)

    def close(self) -> None:
        self.closed = True
        self._folder.cleanup()

    def files(self) -> list[Path]:
        """What lies in the temporary folders now."""
        return [path for path in self.root.rglob("*") if path.is_file()]
