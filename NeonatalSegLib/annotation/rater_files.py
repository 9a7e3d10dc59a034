"""The files of one rater that other programs read: label map and annotated mask of each scan, made from the record.

The record, kept in the ledger, alone decides. These files are staged before its line is written, moved to their places
after it, and made again on opening where a kill came between.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from NeonatalSegLib.annotation.record import NOTE, Record, mask_of, with_slices_written
from NeonatalSegLib.annotation.study import Study
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.files import atomic
from NeonatalSegLib.scans.labels import note_of, stage_labels


class RaterFiles:
    """``<scan>_dseg.nii.gz`` and ``<scan>_desc-annotated_mask.nii.gz`` in a rater's folder.

    Attributes:
        place: that folder.
        warnings: in words, what was put right or could not be brought up to date.
    """

    def __init__(self, study: Study, rater: str) -> None:
        self.study = study
        self.place = study.rater_folder(rater)
        self.warnings: list[str] = []
        self._base: tuple[str, np.ndarray] | None = None  # of the last scan only: a study may have many

    def prefill(self, scan: str) -> np.ndarray:
        """(z, y, x) uint8: the study's pre-fill of a scan; not to be written into."""
        if self._base is None or self._base[0] != scan:
            self._base = scan, self.study.prefill(scan)
        return self._base[1]

    def label_map(self, record: Record, scan: str) -> np.ndarray:
        """(z, y, x) uint8: the pre-fill, with the labels of drafts and over them those of completed slices."""
        drafts, done = record.of_scan(scan)
        return with_slices_written(self.prefill(scan), self.study.plan.grids[scan], [*drafts, *done])

    def mask(self, record: Record, scan: str) -> np.ndarray:
        """(z, y, x) uint8: 1 in the completed slices."""
        return mask_of(self.study.plan.grids[scan], (saved.slice for saved in record.of_scan(scan)[1]))

    def stage(self, staged: list[tuple[Path, Path]], record: Record, scan: str, *, mask_first: bool) -> None:
        """Write label map and mask beside their places, into ``staged`` in the order in which to move them.

        A slice that comes is in the label map first, one that goes leaves the mask first: so what the mask shows is
        completed also between the moves.
        """
        grid = self.study.plan.grids[scan]
        labels, mask = self._paths(scan)
        maps = [(labels, self.label_map(record, scan)), (mask, self.mask(record, scan))]
        for path, array in reversed(maps) if mask_first else maps:
            staged.append((stage_labels(path, array, grid, record.note(scan)), path))

    def put(self, staged: Sequence[tuple[Path, Path]]) -> None:
        """Move staged files to their places; where that fails the slices are safe all the same, and it is a warning."""
        try:
            for part, path in staged:
                atomic.put(part, path)
            if staged:
                atomic.sync_folder(self.place)
        except OSError as error:
            self.warnings.append(
                f"{path} could not be brought up to date ({error.strerror or error}); the slices are safe in the "
                "ledger, and the file follows with the next slice. Close the program that has it open."
            )

    def put_right(self, record: Record) -> None:
        """Make label maps and masks again that a kill kept from following the ledger."""
        for part in self.place.glob(".part-*"):
            with contextlib.suppress(OSError):  # open elsewhere: it is written over
                part.unlink(missing_ok=True)
        for scan in (s.name for s in self.study.scans):
            note, known = record.note(scan), any(record.of_scan(scan))
            found = {path: note_of(path) for path in self._paths(scan) if path.exists()}
            if (known and list(found.values()) == [note, note]) or not (known or found):
                continue
            for path, its_note in found.items():
                if not (known and its_note.startswith(NOTE)):
                    self._set_aside(path)
            if known:
                staged: list[tuple[Path, Path]] = []
                try:
                    self.stage(staged, record, scan, mask_first=False)
                except OSError as error:
                    self.warnings.append(
                        f"{self.place} cannot hold the label map of {scan}: {error.strerror or error}."
                    )
                self.put(staged)

    def _set_aside(self, path: Path) -> None:
        """Keep what another program wrote; the ledger knows nothing of it."""
        number = 1
        while (kept := path.with_name(f"{path.name.removesuffix('.nii.gz')}-changed{number}.nii.gz")).exists():
            number += 1
        try:
            atomic.put(path, kept)
        except OSError as error:
            raise NeonatalSegError(
                f"{path} was changed by another program and cannot be set aside ({error.strerror or error}): close the "
                "program that has it open."
            ) from error
        self.warnings.append(f"{path} was changed by another program. It is kept as {kept.name}, but not used.")

    def _paths(self, scan: str) -> tuple[Path, Path]:
        return self.place / f"{scan}_dseg.nii.gz", self.place / f"{scan}_desc-annotated_mask.nii.gz"
