"""Take a site out of its tree, whether its controller runs or not.

The order is what makes it safe: a running controller is asked whether its parent is in reach before anything is touched; then it
is stopped (what it runs runs on), the parent is told over a link of this process, and only then applications end and the identity
is destroyed. Every step may be repeated, so a leave that was cut off anywhere is finished by the same command: a parent that has
forgotten the site already counts as told.

Afterwards the data folder holds what is the site's own, volumes and the model cache, and nothing that says who it was.
"""

import asyncio
import contextlib
import os
import select
import shutil
import signal
from collections.abc import Callable
from importlib.metadata import version as installed
from pathlib import Path

from msgspec import Struct, structs

from banyanctl import kinds, systemd
from banyanctl.client import Client
from banyanctl.endpoint import read
from cluster_controller import config
from cluster_controller.config import Config
from cluster_controller.errors import BanyanError, Conflict, Forbidden, StoreInUse, Unreachable

DISTRIBUTION = "banyan-edge"
LINK_SECONDS = 20.0  # for a link to the parent
STOP_SECONDS = 30.0  # for the controller to end; its own bounds are shorter
ASK_SECONDS = 5.0  # for an answer of the running controller
LINK_METRIC = "banyan_link_heard_seconds"
MARKS = ("store.db", "store.db-wal", "store.db-shm", "store.lock", ".banyan.toml.new")


class Site(Struct, frozen=True):
    """What leaves. ``running``: pid of its controller, or None."""

    settings: Config
    name: str
    parent: str
    running: int | None


class Left(Struct, frozen=True):
    name: str
    parent: str
    told: bool  # the parent knows
    stopped: bool  # its controller ran, and was stopped
    applications: str  # ended, kept, or none: no cluster that this program can end


def find(settings: Config) -> Site:
    """The site in ``settings.data``; NotFound when nobody lives there, Forbidden for a root."""
    from cluster_controller.identity import load

    identity = load(settings.identity_folder)
    if identity.is_root:
        raise Forbidden(f"{identity.name} is the root of its tree, there is nobody to leave; to end the tree remove {settings.data}")
    return Site(settings, identity.name, identity.saved.parent_name, owner(settings.data))


def leave(site: Site, *, keep_applications: bool, force: bool, say: Callable[[str], None]) -> Left:
    """Everything, in the order of the module's text. Unreachable, Conflict: nothing was changed."""
    settings = site.settings
    if site.running is not None:
        if not force:
            _refuse_obstacles(site)
        say(f"stopping the controller of {site.name}")
        stop(site)
    say(f"telling {site.parent}")
    told = asyncio.run(_take_leave(site, force=force))
    applications = "kept" if keep_applications else "none"
    if settings.shim == "process" and not keep_applications:
        from cluster_shim.process import client

        say("ending what runs here")
        client.end(settings.process_folder)
        applications = "ended"
    forget(settings)
    systemd.remove(site.name)
    return Left(site.name, site.parent, told, site.running is not None, applications)


# --- a controller that runs ---


def owner(data: Path) -> int | None:
    """Pid of the process that holds the data folder; None when nobody does. Believed only of a process that has the lock open."""
    path = data / "store.lock"
    try:
        pid, lock = int(path.read_text(encoding="ascii")), path.stat()
        descriptors = list(Path(f"/proc/{pid}/fd").iterdir())
    except (OSError, ValueError):
        return None
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            found = descriptor.stat()
            if (found.st_dev, found.st_ino) == (lock.st_dev, lock.st_ino):
                return pid
    return None


def _refuse_obstacles(site: Site) -> None:
    """While everything still runs: whether the parent can be told, and whether somebody depends on this site."""
    try:
        with Client(read(site.settings.admin_kubeconfig), ASK_SECONDS) as client:
            links = client.request("GET", "/metrics").body.decode("utf-8", "replace")
            clusters = client.items(kinds.path(kinds.find("clusters"), ""))
    except BanyanError:
        return  # it is stopped all the same; what it cannot say now is found out then
    if f'{LINK_METRIC}{{peer="{site.parent}"}}' not in links:
        raise _not_told(site, f"the link to {site.parent} is down")
    below = sorted(str(one["metadata"]["name"]) for one in clusters if (one.get("status") or {}).get("path"))
    _refuse_members(site, below)


def _refuse_members(site: Site, below: list[str]) -> None:
    if below:
        raise Conflict(
            f"{site.name} has clusters below it, which would lose their parent: {', '.join(below[:5])}{' …' if len(below) > 5 else ''};"
            " let them leave first, or leave with --force"
        )


def _not_told(site: Site, why: str, state: str = "nothing was changed") -> Unreachable:
    return Unreachable(
        f"{site.parent} cannot be told that {site.name} leaves: {why}; {state}. Try again when it is in reach,"
        " or leave with --force and remove the name there with `banyan cluster remove`"
    )


def stop(site: Site) -> None:
    """End the controller alone. Its unit first, so that nobody starts it again; then whoever still holds the folder."""
    systemd.stop(site.name)
    pid = owner(site.settings.data)
    if pid is None:
        return
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(process, signal.SIGTERM)
        poll = select.poll()
        poll.register(process, select.POLLIN)
        if not poll.poll(STOP_SECONDS * 1000):
            raise StoreInUse(
                f"the controller of {site.name}, process {pid}, does not end within {STOP_SECONDS:g} s; end it, then try again"
            )
    except PermissionError as error:
        raise Forbidden(f"the controller of {site.name}, process {pid}, belongs to another user; run this as that user") from error
    finally:
        os.close(process)


# --- one that does not ---


async def _take_leave(site: Site, *, force: bool) -> bool:
    """Whether the parent was told. Nothing is ended before it was, unless forced."""
    from cluster_controller.app import Controller

    controller = Controller(structs.replace(site.settings, tunnel_listen=""), None, version=installed(DISTRIBUTION))
    await controller.start()
    try:
        if not force:
            _refuse_members(site, sorted(one.name for one in controller.membership.members() if one.state == "member"))
        async with asyncio.timeout(LINK_SECONDS):
            while controller.tunnel.parent is None and not controller.membership.forgotten:  # noqa: ASYNC110 (a one-shot command)
                await asyncio.sleep(0.05)
        await controller.membership.leave()
    except (TimeoutError, Unreachable) as error:
        if not force:
            state = (
                "nothing was changed"
                if site.running is None
                else "its controller was stopped (`banyan run` starts it), nothing else changed"
            )
            raise _not_told(site, str(controller.tunnel.dial_error or error or "no answer"), state) from error
        return False
    finally:
        await controller.stop()
    return True


def forget(settings: Config) -> None:
    """Destroy who this was. The identity goes before the settings: without it nobody lives here, whatever else is left."""
    settings.admin_kubeconfig.unlink(missing_ok=True)
    for name in MARKS:
        (settings.data / name).unlink(missing_ok=True)
    shutil.rmtree(settings.identity_folder)
    (settings.data / config.FILE_NAME).unlink(missing_ok=True)
