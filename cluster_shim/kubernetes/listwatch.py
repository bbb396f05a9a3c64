"""List, then watch, and never miss anything in between: what to ask next, decided from what was answered. Pure.

The protocol is that of client-go's reflector (KEP-1904, KEP-365): a list in pages ends with a resourceVersion; a watch goes on from
there; bookmarks carry it forward over quiet times; 410 means that the version is too old, and the list starts again. While it runs,
everything known stays known; objects that the new list does not name are gone. Waiting is told, never done: `now` and `draw`
(uniform 0…1) are arguments.
"""

from typing import Literal

from msgspec import Struct

PAGE = 500  # objects in one answer
WATCH_SECONDS = 300  # after which the server ends a watch by itself; up to twice that, so that watches do not end together
FIRST_PAUSE = 0.8  # after a failure; doubled each time, as client-go does
LONGEST_PAUSE = 30.0


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
        self.version = ""  # everything up to here is known; "" before the first list has ended
        self.listing = True

    def next(self, draw: float) -> Step:
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (self._failures - 1)) * (0.5 + draw / 2) if self._failures else 0.0
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

    def listed(self, version: str, onward: str) -> bool:
        """A page arrived. True: it was the last; whatever no page named is gone."""
        self._failures = 0
        self._continue = onward
        if onward:
            return False
        self.listing = False
        self.version = version
        return True

    def moved(self, version: str) -> None:
        """The watch brought an object or a bookmark of this version: the server is well."""
        self._failures = 0
        if version:
            self.version = version

    def ended(self, *, quiet: bool) -> None:
        """The watch ended in order. One that ended at once and brought nothing counts as a failure, so that nobody spins."""
        if quiet:
            self._failures = min(self._failures + 1, 16)

    def expired(self) -> None:
        """410: this version, or the list's continuation, is too old. The list starts again at its first page."""
        if self.listing:
            self._failures = min(self._failures + 1, 16)
        self.listing = True
        self._continue = ""
        self.version = ""

    def failed(self) -> None:
        """Whatever was asked was not answered, or not to the end. A list goes on at its page, a watch from its version."""
        self._failures = min(self._failures + 1, 16)
