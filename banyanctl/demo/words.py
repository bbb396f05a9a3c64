"""Commands of the demo: run so that none outlives it, and shown so that a reader can type them."""

import asyncio
import contextlib
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

WIDTH = 100  # columns after which a shown command goes on in the next line


async def output(words: Sequence[str], environment: Mapping[str, str] | None = None) -> tuple[int, str, str]:
    """Exit code, standard output and standard error; a command whose caller is cancelled is killed and waited for."""
    process = await asyncio.create_subprocess_exec(
        *words, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=environment
    )
    try:
        out, err = await process.communicate()
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    assert process.returncode is not None
    return process.returncode, out.decode(errors="replace"), err.decode(errors="replace")


def shown(words: Sequence[str], folder: Path) -> str:
    """The line that a shell takes for exactly these words, where $FOLDER is ``folder`` and `python` this interpreter.

    Files below the working directory are named from there. A long command goes on in the next line.
    """
    lines: list[str] = []
    for group in _groups(words):
        text = " ".join(_word(word, str(folder)) for word in group)
        if lines and len(lines[-1]) + len(text) < WIDTH:
            lines[-1] += f" {text}"
        else:
            lines.append(text)
    return " \\\n  ".join(lines)


def _groups(words: Sequence[str]) -> Iterator[list[str]]:
    """What belongs in one line: a program with what it is told first, an option with its value."""
    group: list[str] = []
    for word in words:
        if group and (word.startswith("-") or (len(group) > 1 and group[0].startswith("-"))):
            yield group
            group = []
        group.append(word)
    if group:
        yield group


def _word(word: str, folder: str) -> str:
    if word == sys.executable:
        return "python"
    here = str(Path.cwd()) + "/"
    if folder in word:
        return '"$FOLDER"'.join(shlex.quote(part) if part else "" for part in word.split(folder))
    return shlex.quote(word.removeprefix(here))
