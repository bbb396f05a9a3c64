"""The command line's only call sites into the controller's own code: create, join, run (leaving is in `leaving`).

Everything else that `banyan` does goes through a controller's API. Nothing here loads typer, click or rich: `banyan run` is
the long-lived process, and what it loads it keeps.
"""

import asyncio
import contextlib
import faulthandler
import gc
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from importlib.metadata import version as installed
from typing import TYPE_CHECKING, Any

import structlog
from msgspec import Struct, structs

from banyanctl import notify, shims
from banyanctl.credential import Endpoint, as_json, url
from cluster_controller import clock, config, durable
from cluster_controller.config import Config
from cluster_controller.errors import AlreadyExists, InvalidInput, NotFound

if TYPE_CHECKING:
    from cluster_controller.app import Controller
    from openapi.serving import Serving

DISTRIBUTION = "banyan-edge"
APPROVAL_SECONDS = 7 * 24 * 3600.0  # how long `banyan join` waits for a person
STOP_SECONDS = 8.0  # for the API's requests in flight, and again for everything else
STUCK_SECONDS = 18.0  # after which a stop is cut off, with the stack of every thread in the log; service managers wait for longer
SETTLED_SECONDS = 5.0  # after which a controller has loaded and begun what it needs
FILES = 65_536  # open files that a controller asks for; the hard limit may allow fewer


class Made(Struct, frozen=True):
    uid: str
    tree_ca_digest: str


class Joined(Struct, frozen=True):
    name: str
    uid: str
    parent: str
    new: bool
    provisional: bool


def init(wanted: Config) -> Made:
    """Make a tree and its root in ``wanted.data``; AlreadyExists when a cluster lives there. Nothing is left half made."""
    from cluster_controller.identity import create_root, load

    if (wanted.data / config.FILE_NAME).exists():
        there = config.load(wanted.data)
        raise AlreadyExists(f"{there.name} lives in {wanted.data} already; run it with `banyan run`, or choose another folder with --data")
    with _writable(wanted):
        try:
            made = load(wanted.identity_folder)  # an init that was cut off before it wrote the settings
        except NotFound:
            made = create_root(wanted.identity_folder, wanted.name, clock.wall())
        if made.name != wanted.name or not made.is_root:
            raise AlreadyExists(f"the identity of {made.name} is in {wanted.data} already; choose another folder with --data")
        config.save(wanted)
    return Made(made.uid, made.tree_ca_digest)


def join(wanted: Config, token: str, waiting: Callable[[str], None]) -> Joined:
    """Make this site a member; the errors are those of `identity.join`. Once it returns, everything is on disk."""
    from banyanctl.events import configure
    from cluster_controller.tree.joining import Request
    from cluster_controller.tree.joining import join as ask

    configure("human", "warning")  # what a running controller tells its log, a person has no use for here
    request = Request(
        token=token,
        name=wanted.name,
        folder=wanted.identity_folder,
        labels=wanted.labels,
        may_have_children=bool(wanted.tunnel_listen),
        proxy=wanted.proxy or None,
        patience=APPROVAL_SECONDS,
    )
    with _writable(wanted):
        done = asyncio.run(ask(request, clock.wall, waiting))
        name = done.identity.name
        config.save(structs.replace(wanted, name=name))
    return Joined(name, done.identity.uid, done.identity.saved.parent_name, done.fresh, done.provisional)


@contextlib.contextmanager
def _writable(wanted: Config) -> Iterator[None]:
    """Say what is wrong with the data folder in words that help, and leave no empty one behind."""
    try:
        yield
    except PermissionError as error:
        raise InvalidInput(f"{wanted.data} cannot be written ({error.strerror}); choose a folder of yours with --data DIR") from error
    except (NotADirectoryError, FileNotFoundError) as error:
        raise InvalidInput(f"{wanted.data} is no folder that can be made ({error.strerror}); choose another with --data DIR") from error
    finally:
        with contextlib.suppress(OSError):
            wanted.data.rmdir()  # refused by the system unless it is empty


# --- the long-lived process ---


def run(settings: Config) -> int:
    """Run the controller until SIGTERM or SIGINT; returns the exit code. Raises what keeps it from starting."""
    import uvloop

    from banyanctl.events import configure

    if not (settings.identity_folder / "identity.json").exists():
        raise NotFound(f"no cluster lives in {settings.data}: create a root with `banyan init`, or a member with `banyan join`")
    configure(settings.log_format, settings.log_level)
    _raise_file_limit()
    sys.setswitchinterval(0.001)  # the loop gives way to the store's thread sooner: a commit waits less for the interpreter lock
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        again = runner.run(_serve(settings))
    if again:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    return 0


async def _bounded(what: str, closing: Coroutine[Any, Any, None]) -> None:
    """A stop that meets a peer or a disk that does not answer still ends; what was acknowledged is on the disk already."""
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await closing
    except TimeoutError:
        print(f"{what} did not end within {STOP_SECONDS:g} s; leaving it", file=sys.stderr, flush=True)


def _raise_file_limit() -> None:
    """As many connections as the system allows this process, not as few as a shell's default."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, FILES) if hard != resource.RLIM_INFINITY else FILES
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _serve(settings: Config) -> bool:
    """Until it is told to stop; whether it shall begin anew."""
    from cluster_controller.app import Controller
    from openapi.serving import Serving

    stop, again = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    controller = Controller(settings, shims.of(settings), version=installed(DISTRIBUTION))

    def begin_anew() -> None:
        again.set()
        stop.set()

    controller.restart = begin_anew
    await controller.start()
    serving = None
    try:
        serving = Serving(controller)
        await serving.start()
        await asyncio.to_thread(_write_admin, settings, controller, serving)
        _announce(settings, controller, serving)
        notify.tell(notify.READY)
        loop.call_later(SETTLED_SECONDS, _freeze)
        await stop.wait()
    finally:
        notify.tell(notify.RELOADING if again.is_set() else notify.STOPPING)
        faulthandler.dump_traceback_later(STUCK_SECONDS, exit=True)  # a thread of its own: it works whatever the loop is stuck in
        if serving is not None:
            await _bounded("serving", serving.close())
        await _bounded("controller", controller.stop())
    faulthandler.cancel_dump_traceback_later()
    return again.is_set()


def _freeze() -> None:
    """What was loaded to start stays: from now on no garbage collection walks through it, which takes 40 ms of a busy controller's time."""
    gc.collect()
    gc.freeze()


def _write_admin(settings: Config, controller: "Controller", serving: "Serving") -> None:
    """The on-site credential, for this machine and the port that is bound now."""
    identity, admin = controller.identity(), controller.membership.loopback_admin()
    endpoint = Endpoint(
        server=_address(settings, serving),
        ca=identity.api_anchors.decode(),
        certificate=admin.certificate.decode(),
        key=admin.key.decode(),
        advertised=url(settings.api_advertise[0], serving.port) if settings.api_advertise else "",
    )
    durable.write(settings.admin_kubeconfig, as_json(endpoint, controller.name, "admin"))


def _address(settings: Config, serving: "Serving") -> str:
    host, _ = config.split_address(settings.api_listen, "api_listen")
    return url(host, serving.port)


def _announce(settings: Config, controller: "Controller", serving: "Serving") -> None:
    """The one line that a person waits for: as a sentence, or as an event among events, so that JSON lines stay JSON lines."""
    from banyanctl.events import for_people

    line = f"{controller.name} serves {_address(settings, serving)}"
    if controller.tunnel_port:
        line += f", children join at port {controller.tunnel_port}"
    if for_people(settings.log_format):
        print(f"{line}; try: banyan --data {settings.data} tree", file=sys.stderr, flush=True)
    else:
        structlog.get_logger().info("controller.serving", message=line, server=_address(settings, serving))
