"""Steering on the kernel that we run on: what it does is what the module says it does, and no revision on trial gets a connection."""

import asyncio
import collections
import errno
import json
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster_shim.contract import ObservedWork
from cluster_shim.process.supervisor import steering
from cluster_shim.process.supervisor.sockets import MAX_GROUP, Ports
from tests.shim.harness import Asker, Driver, ask, cluster, free_port, server, work
from tests.shim.test_outlives import processes_below, supervisor_pid, until_replaced

NEVER = {"READY": "0"}  # it serves all it is asked, and says that it is not ready
BAD: dict[str, dict[str, Any]] = {
    "never ready": {"env": NEVER},
    "crashes at start": {"command": ("/bin/sh", "-c", "echo no config; exit 4")},
    "serves only the site port and is never ready": {"env": {**NEVER, "ONLY_SITE": "1"}},
}


def reached(ports: Ports, number: int, source: str = "", but: str = "") -> str:
    """The name of the socket that a connection ends up in."""
    with socket.socket() as client:
        client.settimeout(5)
        if source:
            client.bind((source, 0))
        client.connect(("127.0.0.1", number))
        waiting = (name for name, port in ports.table.items() if port.sock is not None and steering.unaccepted(port.sock))
        (found,) = (name for name in waiting if name != but)
        sock = ports.table[found].sock
        assert sock is not None
        sock.accept()[0].close()
    return found


def spread(ports: Ports, number: int, count: int = 400) -> dict[str, int]:
    return dict(collections.Counter(reached(ports, number) for _ in range(count)))


@contextmanager
def table(folder: Path) -> Iterator[Ports]:
    folder.mkdir(exist_ok=True)
    ports = Ports(str(folder))
    try:
        yield ports
    finally:
        for name in list(ports.table):
            ports.release(name)


def test_connections_go_by_weight_and_in_person_by_address(tmp_path: Path) -> None:
    number = free_port()
    with table(tmp_path) as ports:
        for name in "abc":
            ports.hold(name, "127.0.0.1", number)
        assert spread(ports, number) == {"a": 400}, "who comes later is on trial"
        for name in "abc":
            assert reached(ports, number, steering.source(ports.table[name].slot)) == name
        ports.direct({"a": 0, "b": 3, "c": 1}, 0.0)
        found = spread(ports, number)
        assert set(found) == {"b", "c"}
        assert 230 < found["b"] < 370  # 300 expected, 8 standard deviations
        ports.direct({"b": 0, "c": 0}, 0.0)
        assert spread(ports, number, 20) == {"a": 20}, "without any weight the first one gets everything"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans(), st.integers(0, 2)), max_size=14))
def test_places_are_followed_through_any_history(tmp_path_factory: pytest.TempPathFactory, history: list[tuple[str, bool, int]]) -> None:
    number = free_port()
    with table(tmp_path_factory.mktemp("ports")) as ports:
        for name, hold, weight in history:
            if hold:
                ports.hold(name, "127.0.0.1", number)
                ports.direct({name: weight}, 0.0)
            else:
                ports.release(name)
            for each, port in ports.table.items():
                assert port.name == each
                assert reached(ports, number, steering.source(port.slot)) == each
            wanted = {each for each, port in ports.table.items() if port.weight}
            if wanted:
                assert set(spread(ports, number, 12)) <= wanted


def test_a_socket_that_stands_beside_others_is_never_closed_but_waits_for_the_next_revision(tmp_path: Path) -> None:
    """Closing it would rearrange the kernel's group: a connection of that moment could end where nobody accepts."""
    number = free_port()
    with table(tmp_path) as ports:
        a, b, c = (ports.hold(name, "127.0.0.1", number) for name in "abc")
        ports.direct({"a": 0, "c": 1}, 0.0)
        assert b.sock is not None
        b.sock.setblocking(False)
        for name in "ab":
            ports.release(name)
        assert a.listens and b.listens
        assert {name for name, port in ports.table.items() if not port.spare} == {"c"}
        d = ports.hold("d", "127.0.0.1", number)
        assert (d.weight, d.inode) in {(0, a.inode), (0, b.inode)}
        e = ports.hold("e", "127.0.0.1", number)
        assert {d.inode, e.inode} == {a.inode, b.inode}
        assert e.sock is not None and os.get_blocking(e.sock.fileno()) and os.get_blocking(b.fd)
        assert spread(ports, number, 50) == {"c": 50}
        c.sock.shutdown(socket.SHUT_RDWR)  # type: ignore[union-attr]  # as a careless program may
        for name in "cde":
            ports.release(name)
        assert ports.table == {}
        with socket.socket() as free:
            free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            free.bind(("127.0.0.1", number))


def test_a_program_that_shuts_its_socket_down_takes_no_connection_of_others(tmp_path: Path) -> None:
    number = free_port()
    with table(tmp_path) as ports:
        a, _, c = (ports.hold(name, "127.0.0.1", number) for name in "abc")
        ports.direct({"a": 0, "b": 1, "c": 1}, 0.0)
        assert a.sock is not None
        a.sock.shutdown(socket.SHUT_RDWR)
        ports.release("a")
        ports.direct({"b": 0}, 0.0)
        assert spread(ports, number, 50) == {"c": 50}
        assert reached(ports, number, steering.source(c.slot)) == "c"


def test_nobody_elses_program_joins_the_group(tmp_path: Path) -> None:
    """Two controllers of one user that want the same port: the second is told, it does not get half of the connections."""
    number = free_port()
    with table(tmp_path / "a") as ours, table(tmp_path / "b") as theirs:
        assert ours.hold("a", "127.0.0.1", number).error == ""
        assert "Address already in use" in theirs.hold("a", "127.0.0.1", number).error


def test_more_revisions_than_fit_and_ipv6_share_a_socket(tmp_path: Path) -> None:
    number = free_port()
    with table(tmp_path) as ports:
        held = [ports.hold(f"p{count}", "127.0.0.1", number) for count in range(MAX_GROUP + 2)]
        assert [bool(port.slot) for port in held] == [True] * MAX_GROUP + [False] * 2
        assert held[-1].inode == held[0].inode
        six = [ports.hold(name, "::1", number) for name in ("x", "y")]
        assert [(port.error, port.slot) for port in six] == [("", 0), ("", 0)]
        assert six[0].inode == six[1].inode
        assert ports.drained("x", 0.0)


def test_a_kernel_without_steering_shares_one_socket_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOPROTOOPT, "Protocol not available")

    monkeypatch.setattr(steering, "attach", refuse)
    number = free_port()
    with table(tmp_path / "a") as ports, table(tmp_path / "b") as theirs:
        held = [ports.hold(name, "127.0.0.1", number) for name in "ab"]
        assert [(port.error, port.view()["source"]) for port in held] == [("", ""), ("", "")]
        assert held[0].inode == held[1].inode
        assert ports.drained("a", 0.0), "whoever is left takes what waits"
        ports.direct({"a": 0, "b": 1}, 0.0)
        ports.release("a")
        socket.create_connection(("127.0.0.1", number)).close()
        assert "Address already in use" in theirs.hold("a", "127.0.0.1", number).error


def test_what_a_supervisor_without_steering_left_is_read_and_steered_from_then_on(tmp_path: Path) -> None:
    """Its file names the port without a revision, and its socket was bound without the option that lets others stand beside it."""
    number = free_port()
    former = socket.socket()
    former.bind(("127.0.0.1", number))
    former.listen(16)
    entry = {"address": "127.0.0.1", "port": number, "inode": os.fstat(former.fileno()).st_ino}
    (tmp_path / "ports.json").write_text(json.dumps({"u/c": entry}))
    with table(tmp_path) as ports:
        ports.resume({"u/c": former.detach()})
        ports.also_as("u/c/one")
        ports.recover([])
        assert ports.table["u/c/one"].inode == entry["inode"]
        ports.release("u/c")
        two = ports.hold("u/c/two", "127.0.0.1", number)
        assert (two.error, two.weight, bool(two.slot)) == ("", 0, True)
        assert spread(ports, number, 50) == {"u/c/one": 50}
        assert reached(ports, number, steering.source(two.slot)) == "u/c/two"
        ports.direct({"u/c/one": 0, "u/c/two": 1}, 0.0)
        assert spread(ports, number, 50) == {"u/c/two": 50}
        again = Ports(str(tmp_path))
        assert {name: (port.slot, port.weight, port.order) for name, port in again.table.items()} == {
            name: (port.slot, port.weight, port.order) for name, port in ports.table.items()
        }


def test_a_socket_is_drained_when_nobody_is_sent_to_it_and_nobody_waits(tmp_path: Path) -> None:
    number = free_port()
    with table(tmp_path) as ports:
        old, _ = (ports.hold(name, "127.0.0.1", number) for name in "ab")
        assert ports.drained("a", 5.0), "nobody else would take them: there is nothing to wait for"
        with socket.create_connection(("127.0.0.1", number)):
            ports.direct({"a": 0, "b": 1}, 5.0)
            assert not ports.drained("a", 6.0)
            assert old.sock is not None
            old.sock.accept()[0].close()
            assert not ports.drained("a", 5.1), "a handshake that began before may still end here"
            assert ports.drained("a", 6.0)


def test_an_upgrade_from_before_steering_disturbs_nobody(tmp_path: Path) -> None:
    """The files of a running site are brought into their older form while its supervisor is dead; a newer one takes over."""

    async def scenario() -> None:
        port = free_port()
        async with cluster(tmp_path) as shim, Driver(shim) as driver:
            driver.want(work(server(port=port)))
            before = await driver.until_ready()
            async with Asker(port) as asker:
                old = supervisor_pid(driver)
                os.kill(old, signal.SIGSTOP)  # nothing is written, and nobody is started in its place meanwhile
                as_before_steering(tmp_path / "process")
                os.kill(old, signal.SIGKILL)
                await until_replaced(driver, old)
                after = await driver.until_ready()
                assert [i.pid for i in after.instances] == [i.pid for i in before.instances]
                driver.want(work(server(version="v2", port=port, env=NEVER), version=2))
                await driver.until(lambda works: works["uid-1"].components[0].reason == "NotReady")
                assert set(asker.answers) == {"v1"}
                served = asker.answers["v1"]
                while asker.answers["v1"] < served + 20 and not asker.failures:
                    await asyncio.sleep(0.01)
                os.kill(after.instances[0].pid, signal.SIGKILL)  # it comes back by its older specification, on the same port
                await driver.until(lambda works: any(i.ready and i.restarts for i in works["uid-1"].instances))
                driver.want(work(server(version="v3", port=port), version=3))
                await driver.until_ready(revision="v3")
                served = asker.answers.get("v3", 0)
                while asker.answers.get("v3", 0) < served + 5 and len(asker.failures) < 2:
                    await asyncio.sleep(0.01)
            assert len(asker.failures) <= 1, "at most the one in flight when the instance was killed"
            assert set(asker.answers) == {"v1", "v3"}

    asyncio.run(scenario())


def as_before_steering(folder: Path) -> None:
    table = json.loads((folder / "ports.json").read_text())
    kept = {name.rpartition("/")[0]: {key: entry[key] for key in ("address", "port", "inode")} for name, entry in table.items()}
    (folder / "ports.json").write_text(json.dumps(kept))
    for path in folder.glob("instances/*/spec.json"):
        spec = json.loads(path.read_text())
        spec["sockets"] = [[label, name.rpartition("/")[0]] for label, name in spec["sockets"]]
        path.write_text(json.dumps(spec))


def test_where_revisions_share_a_socket_a_swap_fails_no_request_and_says_what_may_happen(tmp_path: Path) -> None:
    """An IPv6 address: clients cannot be told apart there."""

    async def scenario() -> None:
        port = free_port()
        async with cluster(tmp_path, bind="::1") as shim, Driver(shim) as driver:
            driver.want(work(server(version="v1", port=port)))
            await driver.until_ready()
            async with Asker(port, "::1") as asker:
                driver.want(work(server(version="v2", port=port, env=NEVER), version=2))
                works = await driver.until(lambda works: works["uid-1"].components[0].reason == "NotReady")
                assert "share one socket" in works["uid-1"].components[0].message
                driver.want(work(server(version="v3", port=port), version=3))
                await driver.until_ready(revision="v3")
            assert asker.failures == []

    asyncio.run(scenario())


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("replicas", [1, 2])
def test_a_revision_gets_connections_only_once_it_is_ready(tmp_path: Path, bad: str, replicas: int) -> None:
    """Version 2 never is; the supervisor dies meanwhile; version 3 is good. A client asks all the time."""

    async def scenario() -> None:
        port = free_port()
        async with cluster(tmp_path) as shim, Driver(shim) as driver:
            driver.want(work(server(version="v1", port=port, replicas=replicas)))
            before = await driver.until_ready(count=replicas)
            async with Asker(port) as asker:
                driver.want(work(server(version="v2", port=port, replicas=replicas, **BAD[bad]), version=2))
                await driver.until(lambda works: works["uid-1"].components[0].reason in ("NotReady", "CrashLoopBackOff"))
                served_alone(driver.works["uid-1"], before, replicas)
                old = supervisor_pid(driver)
                os.kill(old, signal.SIGKILL)
                await until_replaced(driver, old)
                served = asker.answers.get("v1", 0)
                while asker.answers.get("v1", 0) < served + 20 and not asker.failures:
                    await asyncio.sleep(0.01)
                assert asker.failures == []
                assert set(asker.answers) == {"v1"}
                driver.want(work(server(version="v3", port=port, replicas=replicas), version=3))
                seen = await driver.until_ready(revision="v3", count=replicas)
            assert asker.failures == []
            assert set(asker.answers) == {"v1", "v3"}
            assert set(processes_below(tmp_path).values()) == {i.id for i in seen.instances}

    asyncio.run(scenario())


def served_alone(now: ObservedWork, before: ObservedWork, replicas: int) -> None:
    ready = {i.id for i in now.instances if i.ready}
    assert ready == {i.id for i in before.instances}
    assert len(ready) == replicas


def test_the_old_revision_serves_on_while_no_controller_looks(tmp_path: Path) -> None:
    """Ready or not: who sends connections elsewhere is the controller, and without one everything stays as it was."""

    async def scenario() -> None:
        port = free_port()
        second = work(server(version="v2", port=port, env={"SLOW_START": "0.5"}), version=2)
        async with cluster(tmp_path) as shim:
            async with Driver(shim) as driver:
                driver.want(work(server(version="v1", port=port)))
                await driver.until_ready()
                driver.want(second)
                await driver.until(lambda works: len(works["uid-1"].instances) == 2)
            await shim.close()
            assert {(await ask(port))[1].split()[0] for _ in range(20)} == {"v1"}
            async with Driver(shim) as driver:
                driver.want(second)
                await driver.until_ready(revision="v2")
                assert (await ask(port))[1].startswith("v2")

    asyncio.run(scenario())
