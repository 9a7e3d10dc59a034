"""What a fine-tuned model is to be good for: the user's choice between two promises."""

from __future__ import annotations

from typing import NamedTuple


class Promise(NamedTuple):
    """``label`` for a list, ``text`` what it means."""

    label: str
    text: str


PROMISES = {
    "everything": Promise("every scan", "Forgets little of other scans."),
    "scanner": Promise("scans like these", "Learns all it can; the current model stays."),
}
