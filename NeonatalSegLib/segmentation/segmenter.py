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
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from NeonatalSegLib.brain_finder.find import brain_distance, brain_volume_ml
from NeonatalSegLib.errors import NeonatalSegError, is_out_of_memory
from NeonatalSegLib.evaluation.metrics import volumes_ml
from NeonatalSegLib.models.bundle import Model
from NeonatalSegLib.models.registry import current_model, find_model
from NeonatalSegLib.networks.gpu import attempts
from NeonatalSegLib.networks.network import NetworkSettings
from NeonatalSegLib.networks.sliding_window import Engine, predict_windows
from NeonatalSegLib.progress import Progress
from NeonatalSegLib.scans.grid import Grid
from NeonatalSegLib.scans.preprocessing import Prepared, prepare
from NeonatalSegLib.scans.scan import Scan
from NeonatalSegLib.scans.way_back import labels_on_scan, probabilities_on_scan
from NeonatalSegLib.segmentation.engines import OpenEngine, open_engine
from NeonatalSegLib.segmentation.growth import age_of_volumes, shown_age
from NeonatalSegLib.segmentation.plausibility import age_warning, cut_brain_warning
from NeonatalSegLib.segmentation.verdict import FAIL, Evidence, Plausibility, assess, coarse_warning, evidence_of

STAGES = {
    "prepare": (0.0, 0.15),
    "network": (0.15, 0.9),
    "back": (0.9, 1.0),
}
# Raised when the way from scan to label map changes: 3 finds the brain first and masks a head around it, and has a
# row of air less where a scan's voxels fit the network's (Grid.covering).
METHOD = 3
MAX_WINDOW_VOXELS = 8_000_000  # of one window: a head and neck are more, and take the training patch


@dataclass(frozen=True, kw_only=True)
class SegmentOptions:
    """What a user may choose for one segmentation.

    Attributes:
        trust_headers: never register T1 to T2.
        n4: correct the bias field first.
        flips: average with the left-right mirror image (twice the network's time).
        probabilities, uncertainty: also give these maps.
        strict: refuse what would otherwise be a warning about the scan: its header, its values, T1 and T2.
        assume_orientation: three letters such as "RAS", for files that do not say how they are oriented.
        dicom_seg: also write DICOM SEG and a structured report (``dicom_out.py``); for scans from DICOM series.
    """

    trust_headers: bool = False
    n4: bool = False
    flips: bool = False
    probabilities: bool = False
    uncertainty: bool = False
    strict: bool = False
    assume_orientation: str | None = None
    dicom_seg: bool = False


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
        evidence: what besides the label map the verdict is from.
        notices: those of the warnings that are about the making, not about the result.
        times_s: seconds per stage.
        device: in words.
        model_name, model_hash: which model made it.
        registration_quality: agreement of T1 and T2, 0-1, or None with one of them.
        age_weeks: post-menstrual age as the model sees it; None where it has no age head.
        volumes_age_weeks: as the volumes of the tissues show it (``growth.age_of_volumes``), or None.
        engine: which one ran the network, its precision, why, and what the processor can do (strings by name).
        head_masked: the scan showed much besides the brain, and that was masked (scans/preprocessing.py).
        inside_skull_ml: what lies inside the skull as the brain finder sees it; None where it saw no brain.
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
    volumes_age_weeks: float | None = None
    engine: dict[str, str] = field(default_factory=dict)
    head_masked: bool = False
    inside_skull_ml: float | None = None
    plausibility: Plausibility = field(default_factory=Plausibility)
    evidence: Evidence = field(default_factory=Evidence)
    notices: list[str] = field(default_factory=list)

    def judge(self) -> None:
        """Set verdict, age by volumes and warnings anew, for the label map and the volumes as they are now."""
        known = self.evidence
        cut = cut_brain_warning(sitk.GetArrayViewFromImage(self.label_map))
        self.plausibility = assess(self.label_map, replace(known, doubts=(*known.doubts, *cut)))
        self.volumes_age_weeks = None
        if self.plausibility.verdict != FAIL:  # volumes of what is no newborn's brain say nothing
            self.volumes_age_weeks = age_of_volumes(self.volumes_ml)
            if known.model_age_weeks is None:
                late = age_warning(known.age_weeks, None, shown_age(self.volumes_ml))
                self.plausibility = self.plausibility.with_doubts(late)
        self.warnings = [*(finding.text for finding in self.plausibility.findings), *self.notices]


class Segmenter:
    """A model on a device, kept warm.

    Args:
        model: name, bundle folder, or a Model; None for the accepted current one, else the shipped one.
        device: "auto" (a GPU that works, else the CPU), "cpu", "cuda", "mps", or "gpu" (Intel's, through OpenVINO).
        engine: "auto", "openvino" or "torch"; see :func:`NeonatalSegLib.networks.choice.choose`.
        threads: most threads on a CPU; None for all.

    Raises:
        NeonatalSegError: no such model, a bad model file, or an engine or device asked for that cannot be used.

    Example: docs/api.md, which a test runs.
    """

    def __init__(
        self,
        model: str | Path | Model | None = None,
        device: str = "auto",
        engine: str = "auto",
        *,
        threads: int | None = None,
    ) -> None:
        warnings: list[str] = []
        if model is None:
            model, warnings = current_model()
        self.model = model if isinstance(model, Model) else find_model(model)
        self._open = open_engine(self.model, device, engine, threads=threads)
        self.wishes = (device, engine)  # as they were given
        self._may_fall_back, self._threads = engine == "auto" and device in ("auto", "cpu"), threads
        self._notice = warnings

    @property
    def notices(self) -> list[str]:
        """What is to be told of model and engine, in words; among the warnings of every result besides."""
        return [*self._notice, *self._open.notices]

    @property
    def engine(self) -> Engine:
        """What runs the network."""
        return self._open.engine

    @property
    def device_text(self) -> str:
        """The device in words, such as "GPU: NVIDIA H200" or "CPU (2 threads)"."""
        return self.engine.device_text

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
            NeonatalSegError: no head in the scan, too little memory, or (``options.strict``) a doubt about the scan.
            Cancelled: whatever ``progress`` raises goes through.
        """
        clock = _Clock(progress)
        clock.enter("prepare")
        prepared = prepare(
            scan,
            self.model.spacing_mm,
            trust_headers=options.trust_headers,
            n4=options.n4,
            find_brain=partial(brain_distance, tick=clock.within),
        )
        if target is not None:
            prepared = replace(prepared, target=target)
        if options.strict and prepared.warnings:
            raise NeonatalSegError(f"{' '.join(prepared.warnings)} (refused because of --strict)")
        warnings = self.notices
        doubts = [*prepared.warnings, *coarse_warning(scan), *self._outside_training(scan)]
        clock.enter("network")
        probabilities, age = self._run_network(prepared, options, clock, warnings)
        clock.enter("back")
        result = self._bring_back(probabilities, prepared, options)
        result.age_weeks, result.head_masked = age, prepared.head_masked
        result.inside_skull_ml = brain_volume_ml(prepared.brain_mm)
        doubts += age_warning(scan.age_weeks, age)
        result.evidence = evidence_of(probabilities, scan, age, prepared.brain_mm, doubts)
        result.notices = warnings
        result.judge()
        clock.leave()
        result.times_s = clock.times_s
        result.device, result.model_name, result.model_hash = self.device_text, self.model.name, self.model.hash
        result.registration_quality, result.engine = prepared.agreement, self._open.facts()
        return result

    def _run_network(
        self, prepared: Prepared, options: SegmentOptions, clock: _Clock, warnings: list[str]
    ) -> tuple[np.ndarray, float | None]:
        """Probabilities on the network's grid, and the age where the model tells one.

        Large windows first, then smaller ones, then the CPU, as memory allows. Where OpenVINO fails, PyTorch.
        """
        network, shape, engine, device = self.model.network, prepared.grid.shape, self.engine, self._open.choice.device
        windows = window_sizes(network, shape, self.model.facts.one_window)
        on_cpu: OpenEngine | None = None
        for where, window in attempts(network, windows, shape, device, engine.precision, engine.free_bytes):
            opened = self._open
            if where != device:
                opened = on_cpu = on_cpu or open_engine(self.model, "cpu", threads=self._threads)
            try:
                out = predict_windows(
                    opened.engine,
                    prepared.array,
                    window,
                    network.stride,
                    flips=options.flips,
                    progress=clock.within,
                )
            except (MemoryError, RuntimeError) as error:
                if is_out_of_memory(error):
                    opened.engine.free_memory()
                    continue
                if opened.engine.name == "openvino" and self._may_fall_back:
                    return self._without_openvino(error, prepared, options, clock, warnings)
                raise
            if (where, window) != (device, windows[0]):
                place = opened.engine.device_text
                warnings.append(f"Memory ran out: the network ran in windows of {window[0]} voxels on {place}.")
            return out
        raise NeonatalSegError("There is too little memory to segment this scan, even in small windows on the CPU.")

    def _without_openvino(
        self, error: Exception, prepared: Prepared, options: SegmentOptions, clock: _Clock, warnings: list[str]
    ) -> tuple[np.ndarray, float | None]:
        """The same with PyTorch, from now on; the user is told."""
        reason = f"it failed on this scan ({str(error).strip().splitlines()[-1]})"
        try:
            self._open = open_engine(self.model, "cpu", threads=self._threads, without=reason)
        except NeonatalSegError as neither:
            raise neither from error
        warnings.append(f"{self._open.choice.reason}.")
        return self._run_network(prepared, options, clock, warnings)

    def _bring_back(self, probabilities: np.ndarray, prepared: Prepared, options: SegmentOptions) -> Segmentation:
        grid = prepared.target
        labels = labels_on_scan(probabilities, prepared.grid, grid)
        result = Segmentation(grid.image(labels), volumes_ml(labels, grid.voxel_volume_mm3))
        if options.probabilities or options.uncertainty:
            full = probabilities_on_scan(probabilities, prepared.grid, grid)
            if options.uncertainty:
                result.uncertainty = grid.image(entropy(full, axis=0))
            if options.probabilities:
                result.probabilities = grid.image(np.moveaxis(full, 0, -1), vector=True)
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


def window_sizes(
    network: NetworkSettings, shape: tuple[int, ...] = (), one_window: bool = False
) -> list[tuple[int, ...]]:
    """Voxels (z, y, x) of the windows to try, largest first: the training patch, then two thirds and one third of it.

    Larger ones only for a model that was trained for ``one_window`` over the whole image (of ``shape``), which is then
    tried first: the network's instance norm sees the statistics of a whole window, and for other models a window with
    more air around the brain than a training patch costs accuracy (one whole-head window: 0.03-0.08 of mean DSC on the
    validation newborn, benchmarks/windows.py).
    """
    stride = network.stride
    sizes = [tuple(max(stride, p * share // 3 // stride * stride) for p in network.patch) for share in (3, 2, 1)]
    if one_window and 0 < math.prod(shape) <= MAX_WINDOW_VOXELS:
        sizes.insert(0, tuple(-(-n // stride) * stride for n in shape))
    return list(dict.fromkeys(sizes))


def entropy(probabilities: np.ndarray, axis: int = -1) -> np.ndarray:
    """Entropy over the classes' axis divided by its maximum: 0 (certain) to 1 (all classes alike), float32."""
    total = np.float32(0)
    for p in np.moveaxis(probabilities, axis, 0):  # one class at a time: no second array of all of them
        p = np.clip(p, 1e-7, 1.0)
        total = total - p * np.log(p)
    return (total / math.log(probabilities.shape[axis])).astype(np.float32)


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
