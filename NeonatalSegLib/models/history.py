"""The user's folder of models and the history of what was accepted in it: one small file an event, no lock.

An event is written into a temporary folder, which is then renamed to the next free number. Renaming a folder onto one
that holds something fails on every system, so a number is won by one process only; the loser reads what the winner
wrote and decides again. Nothing is ever rewritten: a killed process leaves the event or no event.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from NeonatalSegLib.errors import NeonatalSegError, reason_of
from NeonatalSegLib.files.atomic import now, sync, sync_folder, try_folder
from NeonatalSegLib.files.settings import read_object

FOLDER_VARIABLE = "NEONATALSEG_MODELS"
ACCEPT, ROLL_BACK, DISCARD = "accept", "roll back", "discard"
_HISTORY = ".history"
_EVENT = "event.json"


@dataclass(frozen=True)
class Event:
    """One decision of a user.

    Attributes:
        event: "accept", "roll back" or "discard".
        name, sha256: the model that is current from now on; of a discarded one the name alone.
        date: ISO 8601, UTC.
        number: place in the history, from 1; 0 before it is written.
    """

    event: str
    name: str
    sha256: str
    date: str = ""
    number: int = 0


def user_folder() -> Path:
    """Folder of the user's own models, which need not exist yet.

    ``NEONATALSEG_MODELS`` where it is set, else NeonatalSeg/Models where the platform keeps a user's data:
    %LOCALAPPDATA%, ~/Library/Application Support, or $XDG_DATA_HOME (~/.local/share).

    Raises:
        NeonatalSegError: the system knows no home folder for this user.
    """
    try:
        if named := os.environ.get(FOLDER_VARIABLE):
            return Path(named).expanduser().absolute()
        home = Path.home()
    except RuntimeError as error:
        raise NeonatalSegError(
            f"There is no home folder to keep models in: set the environment variable {FOLDER_VARIABLE} to a folder."
        ) from error
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = home / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share")
    return base / "NeonatalSeg" / "Models"


def read_events() -> list[Event]:
    """All events, the oldest first; one that cannot be read (changed by hand) is passed over."""
    folder = user_folder() / _HISTORY
    try:
        numbers = sorted(int(p.name) for p in folder.iterdir() if p.name.isdecimal())
    except OSError:
        return []
    events = []
    for number in numbers:
        try:
            said = read_object(folder / _place(number) / _EVENT, "event", most_bytes=10_000)
            events.append(Event(**{**said, "number": number}))
        except (NeonatalSegError, TypeError):
            continue
    return events


def add_event(decide: Callable[[Sequence[Event]], Event | None]) -> Event | None:
    """Append the event that ``decide`` makes of the history; it is asked again where another process was quicker.

    So an event rests on every event before it. Where ``decide`` gives None or raises, nothing is written.

    Raises:
        NeonatalSegError: the folder cannot be written.
    """
    folder = user_folder() / _HISTORY
    while True:
        try:
            last = _last_number(folder)
            # Only what lies before the number that is asked for: what comes in between is read in the next round.
            event = decide([e for e in read_events() if e.number <= last])
            if event is None:
                return None
            event = Event(event.event, event.name, event.sha256, now(), last + 1)
            if _claim(event, folder):
                return event
        except OSError as error:
            raise NeonatalSegError(why_not_written(folder.parent, error)) from error


def accepted_order(events: Sequence[Event]) -> list[tuple[str, str]]:
    """Name and hash of the models that were current one after the other and are still meant: the last one is current.

    A roll-back goes down to the model that it names, a discarded model is taken out everywhere.
    """
    order: list[tuple[str, str]] = []
    for event in events:
        entry = (event.name, event.sha256)
        if event.event == ACCEPT:
            order.append(entry)
        elif event.event == ROLL_BACK:
            while order and order[-1] != entry:
                order.pop()
        elif event.event == DISCARD:
            order = [e for e in order if e[0] != event.name]
    return [e for i, e in enumerate(order) if i == 0 or e != order[i - 1]]


def check_writable() -> None:
    """Before minutes of training: NeonatalSegError where no model can be kept in the user's folder."""
    folder = user_folder()
    try:
        try_folder(folder)
    except OSError as error:
        raise NeonatalSegError(why_not_written(folder, error)) from error


def why_not_written(folder: Path, error: Exception) -> str:
    return (
        f"The models' folder {folder} could not be written ({reason_of(error)}): free space, or set the environment "
        f"variable {FOLDER_VARIABLE} to a folder that you may write."
    )


def _claim(event: Event, folder: Path) -> bool:
    """Write an event under its number; False where that is taken."""
    staging = folder / f".new-{uuid.uuid4().hex}"
    staging.mkdir(parents=True)
    target = folder / _place(event.number)
    try:
        entries = {key: value for key, value in asdict(event).items() if key != "number"}
        with (staging / _EVENT).open("wb") as stream:
            stream.write(json.dumps(entries).encode() + b"\n")
            sync(stream)
        try:
            os.rename(staging, target)  # noqa: PTH104  # Path.rename says the same; here the failure is the point
        except OSError:
            if target.exists():
                return False
            raise
        sync_folder(folder)
        return True
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _last_number(folder: Path) -> int:
    """The highest number there is, readable or not: a damaged event keeps its place."""
    if not folder.is_dir():
        return 0
    return max((int(p.name) for p in folder.iterdir() if p.name.isdecimal()), default=0)


def _place(number: int) -> str:
    return f"{number:06d}"
