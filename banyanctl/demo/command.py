"""The `banyan demo` command: play the story, leave the tree running when asked, stop everything otherwise, also on Ctrl-C."""

import asyncio
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from banyanctl.cli import examples
from banyanctl.demo.screen import Screen
from banyanctl.demo.story import Story
from cluster_controller.errors import BanyanError, InvalidInput

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "emotion"


@examples("banyan demo", "banyan demo --keep", "banyan demo --folder /tmp/banyan-demo --keep")
def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the tree running at the end, until Ctrl-C.")] = False,
    folder: Annotated[
        Path | None, typer.Option("--folder", help="Where the six data folders and logs go.", show_default="a new one")
    ] = None,
    files: Annotated[
        Path, typer.Option("--examples", help="Folder with the emotion example of a checkout.", show_default="that of this checkout")
    ] = EXAMPLES,
) -> None:
    """Play a three-level tree on this machine: join, deploy a real model, cut, reboot in the dark, heal."""
    if not (files / "model-1" / "model.onnx").exists():
        raise InvalidInput(f"{files} holds no emotion example; run this from a checkout, or name its examples/emotion with --examples")
    place = folder.absolute() if folder is not None else Path(tempfile.mkdtemp(prefix="banyan-demo-"))
    if folder is not None and place.exists() and any(place.iterdir()):
        raise InvalidInput(f"{place} is not empty; name a new folder", "folder")
    try:
        done = asyncio.run(play(Story(place, files, Screen()), keep=keep))
    except BanyanError:
        typer.echo(f"The demo did not get to its end; nothing of it runs any more. Its data and logs are in {place}", err=True)
        raise
    if folder is None:
        shutil.rmtree(place, ignore_errors=True)
    if not done:
        raise typer.Exit(130)


async def play(story: Story, *, keep: bool) -> bool:
    """Until its end, or until a person ends it: then False. Nothing that it started is left."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    playing = asyncio.create_task(story.play())
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({playing, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not playing.done():
            return False
        playing.result()
        if keep:
            story.next_commands()
            await stopping
        return True
    finally:
        for task in (playing, stopping):
            task.cancel()
        await asyncio.wait({playing, stopping})
        await story.close()
