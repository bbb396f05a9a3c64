"""A request whose body is a stream of lines, and its answer another: the part of HTTP/1.1 that `http` has for it.

What comes is cut into lines while it comes (a message of the application each, NDJSON), and what goes out goes as chunks, so the first
answer is on its way before the input ends.

Invariants
- Unread lines are bounded: beyond `UNREAD` bytes of them nothing more is read from the client until some were taken. A line is at most as
  long as any other request's body, and all that is held counts against the same budget.
- What cannot go on (too long, too much at once, silent for too long) ends the input; everything before it is answered first.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Protocol

UNREAD = 256 * 1024
CLOSE = b"Connection: close\r\n"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n%b\r\n"
LAST = b"0\r\n\r\n"


class InputEnded(Exception):
    """Raised by the input of a stream where it cannot go on: what the application's last answer should say."""


Answering = Callable[[AsyncIterator[bytes]], AsyncGenerator[bytes]]
"""The application's part: lines, without their ends, to lines."""


class Room(Protocol):
    """The budget that all connections share."""

    def reserve(self, size: int) -> bool: ...

    def release(self, size: int) -> None: ...


class Lines:
    """One request's input. The connection pushes, the application reads."""

    def __init__(self, answering: Answering, room: Room, longest: int, keep_alive: bool) -> None:
        """``longest``: bytes of a line."""
        self.answering = answering
        self.keep_alive = keep_alive
        self.ended = False
        self.full = False  # no more is to be read from the client for now
        self.taken: Callable[[], None] = lambda: None  # told when something was taken
        self._room = room
        self._longest = longest
        self._part = bytearray()  # of a line whose end is to come
        self._lines: deque[bytes] = deque()
        self._unread = 0  # bytes of whole lines
        self._held = 0  # bytes of the budget
        self._too_long = False
        self._failed = ""
        self._news = asyncio.Event()

    def push(self, data: bytes) -> None:
        if self.ended:
            return
        first, *others = data.split(b"\n")
        self._part += first
        for following in others:
            self._whole()
            self._part += following
        if len(self._part) > self._longest or self._too_long:
            self.fail(f"a line is over {self._longest} bytes, this worker's cap")
        elif not self._settle():
            self.fail("too many large requests at once; try again")
        self.full = self._unread > UNREAD

    def _whole(self) -> None:
        if line := bytes(self._part).strip():
            self._too_long |= len(line) > self._longest
            self._lines.append(line)
            self._unread += len(line)
            self._news.set()
        self._part.clear()

    def end(self) -> None:
        """The last line may come without its end."""
        if not self.ended:
            self._whole()
            self._end()

    def fail(self, why: str) -> None:
        """No more comes; what came is still given out, then `InputEnded` is raised."""
        if not self.ended:
            self._failed = why
            self._end()

    def close(self) -> None:
        """Nobody takes anything any more."""
        self._lines.clear()
        self._unread = 0
        self._end()

    def _end(self) -> None:
        self.ended = True
        self._part.clear()
        self._settle()
        self._news.set()

    def _settle(self) -> bool:
        """Take or give back what is held now; False when the budget has no room for it."""
        size = len(self._part) + self._unread
        if size > self._held and not self._room.reserve(size - self._held):
            return False
        if size < self._held:
            self._room.release(self._held - size)
        self._held = size
        return True

    async def read(self) -> AsyncIterator[bytes]:
        """Line by line, without their ends, until the input's. Raises `InputEnded`."""
        while True:
            while self._lines:
                line = self._lines.popleft()
                self._unread -= len(line)
                self._settle()
                self.full = self._unread > UNREAD
                self.taken()
                yield line
            if self.ended:
                if self._failed:
                    raise InputEnded(self._failed)
                return
            self._news.clear()
            await self._news.wait()


def chunk(line: bytes) -> bytes:
    return b"%x\r\n%b\n\r\n" % (len(line) + 1, line)
