"""The networks that tests are made of do what they say, and a killed test run leaves none behind."""

import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from e2e.netns import Namespace, command, sweep, weaving
from e2e.support import ROOT

pytestmark = pytest.mark.needs("root")


def listen(space: Namespace, address: str) -> socket.socket:
    with space.entered():
        return socket.create_server((address, 0))


def dial(space: Namespace, to: tuple[str, int]) -> socket.socket:
    with space.entered():
        return socket.create_connection(to, timeout=2.0)


def test_a_router_hides_what_is_behind_it_and_a_cut_link_says_nothing() -> None:
    with weaving() as fabric:
        parent, router, site = (fabric.namespace(name) for name in ("parent", "router", "site"))
        outside, inside = fabric.link(parent, router), fabric.link(router, site)
        router.masquerade(outside.lower.device)
        site.default_route(inside.upper.address)
        parent.default_route(outside.lower.address)
        with listen(parent, outside.upper.address) as door, dial(site, door.getsockname()) as connection:
            accepted, (seen, _) = door.accept()
            with accepted:
                assert seen == outside.lower.address  # not the site's own
                with listen(site, inside.lower.address) as hidden, pytest.raises(TimeoutError):
                    dial(parent, hidden.getsockname())
                accepted.sendall(b"one")
                assert connection.recv(3) == b"one"
                outside.cut()
                accepted.sendall(b"two")
                connection.settimeout(0.3)
                with pytest.raises(TimeoutError):
                    connection.recv(3)
                outside.mend()
                connection.settimeout(20)
                assert connection.recv(3) == b"two"


def test_only_the_thread_that_enters_is_elsewhere() -> None:
    here = Path("/proc/thread-self/ns/net")
    home, seen = here.readlink(), []
    entered, leave = threading.Event(), threading.Event()

    def visit(space: Namespace) -> None:
        with space.entered():
            seen.append(here.readlink())
            entered.set()
            leave.wait(10)
        seen.append(here.readlink())

    with weaving() as fabric:
        thread = threading.Thread(target=visit, args=(fabric.namespace("one"),))
        thread.start()
        assert entered.wait(10)
        assert here.readlink() == home
        leave.set()
        thread.join()
    assert seen[0] != home
    assert seen[1] == home


CRASHING = """
import subprocess, sys
from e2e.netns import Fabric
space = Fabric().namespace("left")
with space.entered():
    child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
print(space.name, child.pid, flush=True)
sys.stdin.read()
"""


def test_what_a_killed_run_left_behind_is_swept_and_nothing_else() -> None:
    run = subprocess.Popen([sys.executable, "-c", CRASHING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert run.stdin is not None and run.stdout is not None
    name, child = run.stdout.readline().split()
    with weaving() as fabric:
        mine = fabric.namespace("mine")
        assert name not in sweep()  # its owner lives
        run.send_signal(signal.SIGKILL)
        run.wait()
        run.stdin.close()
        run.stdout.close()
        assert Path(f"/proc/{child}").exists()
        assert name in sweep()
        left = command("ip", "netns", "list")
        assert name not in left
        assert mine.name in left
    assert not Path(f"/proc/{child}").exists() or Path(f"/proc/{child}/stat").read_text().split()[2] == "Z"
