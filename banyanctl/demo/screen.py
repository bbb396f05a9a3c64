"""What the demo says, in a terminal that is a pleasure to read, or as plain lines where there is none."""

import sys
import time
from collections.abc import Sequence

from rich.console import Console
from rich.panel import Panel
from rich.table import Table


class Screen:
    def __init__(self) -> None:
        self.plain = not sys.stdout.isatty()
        self._console = Console(highlight=False, soft_wrap=True)  # a long line stays one line for who copies it
        self._started = time.monotonic()

    def title(self, text: str, note: str) -> None:
        if self.plain:
            print(f"== {text}\n   {note}", flush=True)
        else:
            self._console.print(Panel(note, title=f"[bold]{text}[/bold]", border_style="green", expand=False), soft_wrap=False)

    def step(self, number: int, text: str) -> None:
        elapsed = time.monotonic() - self._started
        if self.plain:
            print(f"\n[{elapsed:5.1f} s] {number}. {text}", flush=True)
        else:
            self._console.print(f"\n[bold green]{number}.[/bold green] [bold]{text}[/bold]  [dim]{elapsed:.1f} s[/dim]")

    def say(self, text: str) -> None:
        self._line(text, "", "  ")

    def good(self, text: str) -> None:
        self._line(text, "green", "  ✓ ")

    def bad(self, text: str) -> None:
        self._line(text, "yellow", "  ✗ ")

    def command(self, text: str) -> None:
        """A command that the reader can repeat; the lines after the first go on."""
        lead = "  $ "
        for line in text.splitlines():
            self._line(line, "cyan", lead)
            lead = "    "

    def block(self, text: str) -> None:
        for line in text.rstrip().splitlines():
            self._line(line, "dim", "    ")

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        if self.plain:
            widths = [max(len(str(row[index])) for row in [columns, *rows]) for index in range(len(columns))]
            print(f"\n{title}")
            for row in [columns, *rows]:
                print("  " + "  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip(), flush=True)
            return
        table = Table(title=title, title_style="bold", title_justify="left")
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*map(str, row))
        self._console.print()
        self._console.print(table, soft_wrap=False)

    def _line(self, text: str, style: str, lead: str) -> None:
        if self.plain:
            print(f"{lead}{text}", flush=True)
        else:
            self._console.print(f"{lead}{text}", style=style or None, markup=False)
