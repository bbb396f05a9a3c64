"""Commands shown in documents, found and run: a page that lies fails the tests.

A fenced block marked `console` is a transcript: lines that begin with `$ ` are commands (a `\\` at the end goes on in the next
line), the others are what they print, where `…` stands for anything. All transcripts of a page run in order in one shell, in a
folder and a HOME of their own. Before a block a comment may say:

    <!-- not run: WHY -->     shown only; the reason is for the reader of the source
    <!-- needs: kubectl -->   left out, and named, where the tool is missing (tools/needs.py)
    <!-- file: NAME -->       the block, whatever it is written in, is the content of this file, there for the commands that follow
    <!-- setup: NAME -->      before the first block: what has to be there already (SETUPS in tests/repository/test_docs.py)
"""

import re
from pathlib import Path

from msgspec import Struct

DIRECTIVE = re.compile(r"<!--\s*(not run|needs|file|setup):\s*(.*?)\s*-->")
FENCE = re.compile(r"^(\s*)```(\w*)\s*$")


class Command(Struct, frozen=True):
    text: str
    shown: tuple[str, ...]  # lines that the page shows as its output; none: not compared
    line: int


class Block(Struct, frozen=True):
    commands: tuple[Command, ...]
    line: int
    needs: tuple[str, ...] = ()
    skipped: str = ""  # why it is not run
    file: str = ""  # name of the file that ``text`` is
    text: str = ""


class Page(Struct, frozen=True):
    path: Path
    blocks: tuple[Block, ...]
    setup: str = ""


def read(path: Path, text: str | None = None) -> Page:
    """The transcripts of a Markdown page; ValueError names a fence that is not closed or a block without a command."""
    lines = (path.read_text(encoding="utf-8") if text is None else text).splitlines()
    blocks: list[Block] = []
    directives: dict[str, str] = {}
    setup = ""
    number = 0
    while number < len(lines):
        line = lines[number]
        number += 1
        if found := DIRECTIVE.fullmatch(line.strip()):
            if found[1] == "setup":
                setup = found[2]
            else:
                directives[found[1]] = found[2]
            continue
        if fence := FENCE.match(line):
            start = number
            while number < len(lines) and lines[number].strip() != "```":
                number += 1
            if number == len(lines):
                raise ValueError(f"{path}:{start}: this block has no end")
            body = [each.removeprefix(fence[1]) for each in lines[start:number]]
            if name := directives.get("file"):
                blocks.append(Block((), start, file=name, text="\n".join(body) + "\n"))
            elif fence[2] == "console":
                blocks.append(
                    Block(
                        _commands(path, body, start + 1), start, tuple(directives.get("needs", "").split()), directives.get("not run", "")
                    )
                )
            number += 1
        if line.strip():
            directives = {}
    return Page(path, tuple(blocks), setup)


def _commands(path: Path, body: list[str], first: int) -> tuple[Command, ...]:
    found: list[Command] = []
    number = 0
    while number < len(body):
        if not body[number].startswith("$ "):
            raise ValueError(f"{path}:{first + number}: a transcript begins with a command, as in: $ banyan tree")
        start, text = number, body[number].removeprefix("$ ")
        while text.endswith("\\"):
            number += 1
            text = text[:-1] + body[number].strip()
        number += 1
        shown = number
        while number < len(body) and not body[number].startswith("$ "):
            number += 1
        found.append(Command(text, tuple(body[shown:number]), first + start))
    return tuple(found)


WAITS = "… "  # how a line begins that a command prints while it waits


def agrees(shown: tuple[str, ...], printed: str) -> bool:
    """Whether what a page shows is what was printed; `…` stands for anything, also for many lines, and columns may be wider.

    What a command says while it takes its time (`… telling region-a`) is not shown: how long it takes depends on the machine.
    """
    if not shown:
        return True
    printed = "\n".join(line for line in printed.splitlines() if not line.startswith(WAITS))
    parts = [re.escape(" ".join(part.split())) for part in "\n".join(" ".join(line.split()) for line in shown).split("…")]
    pattern = ".*".join(part.replace("\\ ", " ") for part in parts)
    return re.fullmatch(pattern, " ".join(printed.split()), re.DOTALL) is not None
