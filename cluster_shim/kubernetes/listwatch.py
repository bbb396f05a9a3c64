"""List, then watch, and never miss anything in between: what to ask next, decided from what was answered. Pure.

The protocol is that of client-go's reflector (KEP-1904, KEP-365): a list in pages ends with a resourceVersion; a watch goes on from
there; bookmarks carry it forward over quiet times; 410 means that the version is too old, and the list starts again. While it runs,
everything known stays known; objects that the new list does not name are gone. Waiting is told, never done; its `draw` (uniform
0…1) is an argument.
"""

from typing import Literal

from msgspec import Struct

PAGE = 500  # objects in one answer
WATCH_SECONDS = 300  # after which the server ends a watch by itself; up to twice that, so that watches do not end together
FIRST_PAUSE = 0.8  # after a failure; doubled each time, as client-go does
LONGEST_PAUSE = 30.0
LONG_SECONDS = 10.0  # a watch that lasted so long was one, though nothing happened
MOST = 16  # failures that count


class Step(Struct, frozen=True):
    """What to do now: a page of the list, or a watch; after ``pause`` seconds."""

    action: Literal["list", "watch"]
    query: tuple[tuple[str, str], ...]
    pause: float = 0.0


class ListWatch:
    """One resource. Ask `next`, do that, then tell one of `listed`, `moved`, `ended`, `expired`, `failed`."""

    def __init__(self, *, label_selector: str = "", field_selector: str = "", page: int = PAGE) -> None:
        self._base = tuple((name, value) for name, value in (("labelSelector", label_selector), ("fieldSelector", field_selector)) if value)
        self._page = page
        self._continue = ""
        self._failures = 0
        self._expired = 0  # watches that were refused as too old, since one has brought something
        self._asked = 0.0  # seconds that the server wants to be left alone
        self.version = ""  # everything up to here is known; "" before the first list has ended
        self.listing = True

    def next(self, draw: float) -> Step:
        pause = self._pause(draw)
        if self.listing:
            query = (*self._base, ("limit", str(self._page)))
            if self._continue:
                query = (*query, ("continue", self._continue))
            return Step("list", query, pause)
        seconds = str(int(WATCH_SECONDS * (1 + draw)))
        query = (
            *self._base,
            ("watch", "1"),
            ("allowWatchBookmarks", "true"),
            ("resourceVersion", self.version),
            ("timeoutSeconds", seconds),
        )
        return Step("watch", query, pause)

    def _pause(self, draw: float) -> float:
        """A list after a watch that expired begins at once, for that happens; the next one, if nothing came of it, does not."""
        count = self._failures
        if self.listing and not self._continue:
            count = max(count, self._expired - 1)
        own = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (count - 1)) * (0.5 + draw / 2) if count > 0 else 0.0
        return max(own, self._asked * (1 + draw / 2))

    def listed(self, version: str, onward: str) -> bool:
        """A page arrived. True: it was the last; whatever no page named is gone."""
        self._failures, self._asked = 0, 0.0
        self._continue = onward
        if onward:
            return False
        self.listing = False
        self.version = version
        return True

    def moved(self, version: str) -> None:
        """The watch brought an object or a bookmark of this version: the server is well."""
        self._failures, self._expired, self._asked = 0, 0, 0.0
        if version:
            self.version = version

    def ended(self, *, quiet: bool, lasted: float) -> None:
        """The watch was answered, and is over after so many seconds, whoever ended it. One that ended at once and brought nothing
        counts as a failure, so that nobody spins."""
        if quiet and lasted < LONG_SECONDS:
            self._failures = min(self._failures + 1, MOST)
        else:
            self._failures, self._expired = 0, 0
        self._asked = 0.0

    def expired(self) -> None:
        """410: this version, or the list's continuation, is too old. The list starts again at its first page."""
        if self.listing:
            self._failures = min(self._failures + 1, MOST)
        else:
            self._expired = min(self._expired + 1, MOST)
        self.listing = True
        self._continue = ""
        self.version = ""

    def failed(self, retry_after: float | None = None) -> None:
        """Whatever was asked was not answered, or not to the end. A list goes on at its page, a watch from its version.

        ``retry_after``: seconds that the server asks for; what it asks beyond `LONGEST_PAUSE` is not heard.
        """
        self._failures = min(self._failures + 1, MOST)
        self._asked = min(retry_after or 0.0, LONGEST_PAUSE)
