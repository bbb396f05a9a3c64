"""Parts of a day in which something may be done, as settings say them. Pure; the settings are read before anything else is loaded."""

import re
from collections.abc import Sequence
from datetime import datetime

from cluster_controller.errors import InvalidInput

_WINDOW = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")


class Windows:
    """Parts of a day, ``HH:MM-HH:MM``, over midnight too (``22:00-06:00``); none: always."""

    def __init__(self, texts: Sequence[str] = ()) -> None:
        self.texts = tuple(texts)
        self._spans = [_span(text) for text in texts]

    def open(self, at: datetime) -> bool:
        minute = at.hour * 60 + at.minute
        return not self._spans or any(_within(minute, start, end) for start, end in self._spans)

    def __str__(self) -> str:
        return ", ".join(self.texts)


def _span(text: str) -> tuple[int, int]:
    match = _WINDOW.fullmatch(text)
    if match is None:
        raise InvalidInput(f"model_windows: {text[:40]!r} is not HH:MM-HH:MM, as in 22:00-06:00", "model_windows")
    start, end = int(match[1]) * 60 + int(match[2]), int(match[3]) * 60 + int(match[4])
    if start == end:
        raise InvalidInput(f"model_windows: {text} begins when it ends; leave it out where models may come at any time", "model_windows")
    return start, end


def _within(minute: int, start: int, end: int) -> bool:
    return start <= minute < end if start < end else minute >= start or minute < end
