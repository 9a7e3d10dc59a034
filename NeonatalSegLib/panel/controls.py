"""What all sections of the panel draw alike: a control, a time in words, the names of the stages of the work."""

from __future__ import annotations

from dataclasses import dataclass

RESEARCH_ONLY = "Research use only, not for diagnosis."
STAGE_NAMES = {
    "inputs": "Handing over the scan",
    "start": "Starting the compute process",
    "import": "Starting the compute process",
    "devices": "Looking for devices",
    "load model": "Loading the model",
    "read": "Reading the scan",
    "register": "Aligning T1 and T2",
    "n4": "Correcting the intensities",
    "prepare": "Preparing the scan",
    "network": "Segmenting",
    "back": "Bringing the result onto the scan",
    "write": "Handing over the result",
}


@dataclass(frozen=True)
class Control:
    """How one control is drawn. ``tool_tip`` says what it does, or why it cannot be used now."""

    enabled: bool = True
    tool_tip: str = ""
    visible: bool = True
    text: str = ""


def duration(seconds: float) -> str:
    """A time for people: "8 s", "2 min", "1 h 5 min"; never "0 s"."""
    if seconds < 59.5:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
