"""From a Scan to a Segmentation: the model is loaded once and serves many scans.

Example:
    >>> segmenter = Segmenter()  # doctest: +SKIP
    >>> segmentation = segmenter.segment(load_scan(t2="sub-01_T2w.nii.gz"))  # doctest: +SKIP
    >>> segmentation.volumes_ml["cortical_gm"]  # doctest: +SKIP
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk

from NeonatalSegLib.errors import NeonatalSegError, is_out_of_memory
from NeonatalSegLib.evaluation.metrics import volumes_ml
from NeonatalSegLib.models.bundle import Model
from NeonatalSegLib.models.registry import current_model, find_model
from NeonatalSegLib.networks.network import NetworkSettings
from NeonatalSegLib.progress import Progress
from NeonatalSegLib.scans.grid import Grid
from NeonatalSegLib.scans.preprocessing import MIN_AGREEMENT, Prepared, back_to_scan, prepare
from NeonatalSegLib.scans.scan import Scan
from NeonatalSegLib.segmentation.second_look import crop_to_brain
from NeonatalSegLib.segmentation.verdict import Plausibility, assess, coarse_warning, evidence_of
from NeonatalSegLib.tissues import PHYSIOLOGICAL

if TYPE_CHECKING:
    import torch

STAGES = {
    "prepare": (0.0, 0.15),
    "network": (0.15, 0.8),
    "brain alone": (0.8, 0.85),
    "once more": (0.85, 0.9),
    "back": (0.9, 1.0),
}
# Where a head is left on: the first of these still leaves some scalp. Each costs the network's time once more.
FURTHER_LOOKS = ("brain alone", "once more")
METHOD = 2  # raised when the way from scan to label map changes: 2 looks again at the brain alone (second_look.py)
MAX_AGE_GAP_WEEKS = 2.0  # between the age given and the age that the model tells
CUT_SHARE = 0.01  # of the border faces showing brain: above it the field of view cuts the brain


@dataclass(frozen=True, kw_only=True)
class SegmentOptions:
    """What a user may choose for one segmentation.

    Attributes:
        trust_headers: never register T1 to T2.
        n4: correct the bias field first.
        flips: average with the left-right mirror image (twice the network's time).
        probabilities, uncertainty: also give these maps.
        strict: refuse what would otherwise be a warning about T1 and T2 not agreeing.
    """

    trust_headers: bool = False
    n4: bool = False
    flips: bool = False
    probabilities: bool = False
    uncertainty: bool = False
    strict: bool = False


@dataclass
class Segmentation:
    """What comes out.

    Attributes:
        label_map: uint8, values 0-9 of tissues.py, on the grid of the scan's reference image.
        volumes_ml: volume of each of the ten classes, by tissue key.
        probabilities: vector of ten float32 per voxel on the same grid, or None.
        uncertainty: entropy over the classes, 0 (certain) to 1 (all alike), float32, or None.
        warnings: in words, for the user: what speaks against the result first, then what went otherwise than wished.
        plausibility: the verdict and its findings.
        times_s: seconds per stage.
        device: in words.
        model_name, model_hash: which model made it.
        registration_quality: agreement of T1 and T2, 0-1, or None with one of them.
        age_weeks: post-menstrual age as the model sees it; None where it has no age head.
        focused: the scan showed much besides the brain and was segmented again with that masked (second_look.py).
    """

    label_map: sitk.Image
    volumes_ml: dict[str, float]
    probabilities: sitk.Image | None = None
    uncertainty: sitk.Image | None = None
    warnings: list[str] = field(default_factory=list)
    times_s: dict[str, float] = field(default_factory=dict)
    device: str = ""
    model_name: str = ""
    model_hash: str = ""
    registration_quality: float | None = None
    age_weeks: float | None = None
    focused: bool = False
    plausibility: Plausibility = field(default_factory=Plausibility)


class Segmenter:
    """A model on a device, kept warm.

    Args:
        model: name, bundle folder, or a Model; None for the accepted current one, else the shipped one.
        device: "auto" (a GPU that works, else the CPU), "cpu" or "cuda".

    Raises:
        NeonatalSegError: no such model, a bad model file, or "cuda" where no GPU works.
    """

    def __init__(self, model: str | Path | Model | None = None, device: str = "auto") -> None:
        warnings: list[str] = []
        if model is None:
            model, warnings = current_model()
        self.model = model if isinstance(model, Model) else find_model(model)
        self.device, notice = choose_device(device)
        self._notice = [*warnings, *notice]
        self._network = self.model.load_network().to(self.device)

    @property
    def device_text(self) -> str:
        """The device in words, such as "GPU: NVIDIA H200" or "CPU (2 threads)"."""
        return device_text(self.device)

    def segment(
        self,
        scan: Scan,
        options: SegmentOptions = SegmentOptions(),
        progress: Progress | None = None,
        *,
        target: Grid | None = None,
    ) -> Segmentation:
        """Segment one scan; ``target`` is the grid of the result, default: that of the scan's reference image.

        Raises:
            NeonatalSegError: no head in the scan, too little memory, or (``options.strict``) T1 and T2 disagree.
            Cancelled: whatever ``progress`` raises goes through.
        """
        import torch

        clock = _Clock(progress)
        clock.enter("prepare")
        prepared = prepare(scan, self.model.spacing_mm, trust_headers=options.trust_headers, n4=options.n4)
        if target is not None:
            prepared = replace(prepared, target=target)
        if options.strict and prepared.agreement is not None and prepared.agreement < MIN_AGREEMENT:
            raise NeonatalSegError(f"{prepared.warnings[-1]} (refused because of --strict)")
        warnings = list(self._notice)
        doubts = [*prepared.warnings, *coarse_warning(scan), *self._outside_training(scan)]
        clock.enter("network")
        probabilities, age = self._run_network(prepared, options, clock, warnings)
        looked_again = False
        for stage in FURTHER_LOOKS:
            labels = probabilities.argmax(0).to(torch.uint8).cpu().numpy()
            closer = crop_to_brain(prepared, labels, force=looked_again)
            if closer is None:
                break
            clock.enter(stage)
            prepared, looked_again = closer, True
            probabilities, age = self._run_network(prepared, options, clock, warnings)
        clock.enter("back")
        result = self._bring_back(probabilities, prepared, options)
        result.age_weeks, result.focused = age, looked_again
        doubts += age_warning(scan.age_weeks, age)
        doubts += cut_brain_warning(sitk.GetArrayViewFromImage(result.label_map))
        result.plausibility = assess(result.label_map, evidence_of(probabilities, scan, age, doubts))
        result.warnings = [*(finding.text for finding in result.plausibility.findings), *warnings]
        clock.leave()
        result.times_s = clock.times_s
        result.device, result.model_name, result.model_hash = self.device_text, self.model.name, self.model.hash
        result.registration_quality = prepared.agreement
        return result

    def _run_network(
        self, prepared: Prepared, options: SegmentOptions, clock: _Clock, warnings: list[str]
    ) -> tuple[torch.Tensor, float | None]:
        """Probabilities on the network's grid, and the age where the model tells one.

        Large windows first, then smaller ones, then the CPU, as memory allows.
        """
        import torch

        from NeonatalSegLib.networks.sliding_window import predict_with_age

        windows = window_sizes(self.model.network)
        attempts = [(self.device, w) for w in windows]
        if self.device.type != "cpu":
            attempts += [(torch.device("cpu"), w) for w in windows]
        for number, (device, window) in enumerate(attempts):
            try:
                network = self._network if device == self.device else self.model.load_network()
                image = torch.from_numpy(prepared.array).to(device)
                out = predict_with_age(
                    network, image, self.model.network, window=window, flips=options.flips, progress=clock.within
                )
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                if device.type == "cuda":
                    torch.cuda.empty_cache()
                continue
            if number:
                where = device_text(device)
                warnings.append(f"Memory ran out: the network ran in windows of {window[0]} voxels on {where}.")
            return out
        raise NeonatalSegError("There is too little memory to segment this scan, even in small windows on the CPU.")

    def _bring_back(self, probabilities: torch.Tensor, prepared: Prepared, options: SegmentOptions) -> Segmentation:
        grid = prepared.target
        labels = back_to_scan(probabilities, prepared)
        result = Segmentation(grid.image(labels), volumes_ml(labels, grid.voxel_volume_mm3))
        if options.probabilities or options.uncertainty:
            full = back_to_scan(probabilities, prepared, reduce="all")
            if options.uncertainty:
                result.uncertainty = grid.image(entropy(full))
            if options.probabilities:
                result.probabilities = grid.image(full, vector=True)
        return result

    def _outside_training(self, scan: Scan) -> list[str]:
        ages = self.model.ages_weeks
        if scan.age_weeks is None or ages is None or ages[0] <= scan.age_weeks <= ages[1]:
            return []
        text = (
            f"The age of {scan.age_weeks:g} weeks is outside what the model {self.model.name} has learned from "
            f"({ages[0]:g}-{ages[1]:g} weeks): expect errors."
        )
        return [text]


def window_sizes(network: NetworkSettings) -> list[tuple[int, ...]]:
    """Voxels (z, y, x) of the windows to try, largest first: the training patch, then two thirds and one third of it.

    Never larger: the network's instance norm sees the statistics of a whole window, and a window with more air around
    the brain than a training patch costs accuracy (one whole-head window: 0.03-0.08 of mean DSC on the validation
    newborn, benchmarks/windows.py).
    """
    stride = network.stride
    sizes = [tuple(max(stride, p * share // 3 // stride * stride) for p in network.patch) for share in (3, 2, 1)]
    return list(dict.fromkeys(sizes))


def entropy(probabilities: np.ndarray) -> np.ndarray:
    """Entropy over the last axis divided by its maximum: 0 (certain) to 1 (all classes alike), float32."""
    p = np.clip(probabilities, 1e-7, 1.0)
    return (-(p * np.log(p)).sum(-1) / math.log(p.shape[-1])).astype(np.float32)


def age_warning(given: float | None, predicted: float | None) -> list[str]:
    """A warning where the age given and the age that the model tells (weeks) are more than two weeks apart."""
    if given is None or predicted is None or abs(given - predicted) <= MAX_AGE_GAP_WEEKS:
        return []
    text = (
        f"The age given is {given:.1f} weeks, but the model estimates {predicted:.1f} weeks: more than "
        f"{MAX_AGE_GAP_WEEKS:g} weeks apart. Check the age and that the scan is the right one; an unusual brain may "
        "also be the reason, and then look at the segmentation with care."
    )
    return [text]


def cut_brain_warning(labels: np.ndarray) -> list[str]:
    """A warning where one of the six outer faces of the label map (z, y, x) shows tissue, i.e. the brain is cut."""
    tissue = np.isin(labels, [t.index for t in PHYSIOLOGICAL if t.brain])
    total = np.count_nonzero(tissue)
    for axis in range(3):
        for end in (0, -1):
            face = np.take(tissue, end, axis)
            widest = max(1, int(tissue.sum(tuple(a for a in range(3) if a != axis)).max()))
            if total and np.count_nonzero(face) > max(20, CUT_SHARE * face.size, 0.15 * widest):
                return ["The brain reaches the edge of the field of view: it may be cut, and volumes too small."]
    return []


def choose_device(wish: str) -> tuple[torch.device, list[str]]:
    """A device that has run one real kernel, and a notice where a GPU is there but does not work.

    Raises:
        NeonatalSegError: unknown name, or "cuda" asked for and not usable.
    """
    import torch

    if wish not in ("auto", "cpu", "cuda"):
        raise NeonatalSegError(f"There is no device {wish!r}: choose auto, cpu or cuda.")
    if wish == "cpu" or (wish == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu"), []
    try:
        # A GPU may be listed and still be too old or too new for this build: let it convolve before promising it.
        probe = torch.nn.functional.conv3d(
            torch.ones(1, 1, 4, 4, 4, device="cuda"), torch.ones(1, 1, 3, 3, 3, device="cuda")
        )
        if float(probe[0, 0, 0, 0, 0]) != 27.0:
            raise RuntimeError("wrong result")
        return torch.device("cuda"), []
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if wish == "cuda":
            raise NeonatalSegError(f"No GPU can be used ({reason}). Choose --device auto or cpu.") from error
        return torch.device("cpu"), [f"A GPU is there but cannot be used ({reason}); the CPU was used."]


def device_text(device: torch.device) -> str:
    """A device in words."""
    import torch

    if device.type == "cuda":
        return f"GPU: {torch.cuda.get_device_name(device)}"
    return f"CPU ({torch.get_num_threads()} threads)"


class _Clock:
    """Times the stages and turns a stage's own fraction into that of the whole."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress = progress
        self.times_s: dict[str, float] = {}
        self._stage: str | None = None
        self._since = 0.0

    def enter(self, stage: str) -> None:
        self.leave(report=False)
        self._stage, self._since = stage, time.perf_counter()
        self.within(0.0)

    def within(self, fraction: float) -> None:
        assert self._stage is not None
        start, stop = STAGES[self._stage]
        if self.progress:
            self.progress(self._stage, start + fraction * (stop - start))

    def leave(self, report: bool = True) -> None:
        if self._stage is not None:
            self.times_s[self._stage] = self.times_s.get(self._stage, 0.0) + time.perf_counter() - self._since
            if report and self.progress:
                self.progress(self._stage, 1.0)
