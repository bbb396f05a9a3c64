"""The supervisor's promises to single instances: identity, reboot, orphans, limits, backoff, logs."""

import asyncio
import contextlib
import json
import os
import signal
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cluster_shim.contract import Component, Ended, File, OpenTarget, Phase, Probe, Resources, Shim, ShimError
from cluster_shim.process import client, session
from cluster_shim.process.client import connect
from cluster_shim.process.supervisor import proc
from cluster_shim.process.supervisor.instance import MAX_DELAY, delay_after
from cluster_shim.process.supervisor.logfile import LogFile
from tests.shim.harness import Asker, Driver, ask, cluster, free_port, server, work
from tests.shim.test_outlives import processes_below, supervisor_pid

PRIVATE_FILES = ("spec.json", "state.json", "work/keys/secret.txt", "log")


def shell(script: str, **fields: Any) -> Component:
    return server(command=("/bin/sh", "-c", script), **fields)


async def logs(shim: Shim, instance: str, **options: str) -> str:
    stream = await shim.open(OpenTarget(kind="logs", instance=instance, options=options))
    data = b""
    while more := await stream.read():
        data += more
    return data.decode()


@pytest.mark.parametrize("reused", ["pid", "boot"])
def test_a_recorded_pid_that_is_a_stranger_now_is_neither_adopted_nor_killed(tmp_path: Path, reused: str) -> None:
    """``pid``: same boot, same number, another start time. ``boot``: everything equal, but before a reboot."""

    async def scenario() -> None:
        with subprocess.Popen(["sleep", "600"]) as stranger:
            try:
                async with cluster(tmp_path, supervisor_options={"boot-id": "first"}) as shim:
                    async with Driver(shim) as driver:
                        driver.want(work(server()))
                        before = (await driver.until_ready()).instances[0]
                        supervisor = supervisor_pid(driver)
                    await shim.close()
                    os.kill(supervisor, signal.SIGKILL)
                    os.kill(before.pid, signal.SIGKILL)
                record = tmp_path / "process/instances" / before.id / "state.json"
                state = json.loads(record.read_text())
                start = proc.start_time(stranger.pid)
                state.update(pid=stranger.pid, start=start if reused == "boot" else (start or 0) - 1)
                record.write_text(json.dumps(state))
                boot = "second" if reused == "boot" else "first"
                async with cluster(tmp_path, supervisor_options={"boot-id": boot}) as shim, Driver(shim) as driver:
                    driver.want(work(server()))
                    after = (await driver.until_ready()).instances[0]
                    assert after.id == before.id
                    assert after.pid not in (stranger.pid, before.pid)
                    assert after.restarts == 1
                    assert after.ended is not None
                    assert after.ended.reason == ("Rebooted" if reused == "boot" else "Lost")
                assert stranger.poll() is None
            finally:
                stranger.kill()

    asyncio.run(scenario())


def test_an_instance_whose_record_was_lost_is_found_by_its_token(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with cluster(tmp_path) as shim:
            async with Driver(shim) as driver:
                driver.want(work(server()))
                before = (await driver.until_ready()).instances[0]
                supervisor = supervisor_pid(driver)
            await shim.close()
            os.kill(supervisor, signal.SIGKILL)
            record = tmp_path / "process/instances" / before.id / "state.json"
            state = json.loads(record.read_text())
            record.write_text(json.dumps({"wanted": "run", "token": state["token"]}))
            async with Driver(shim) as driver:
                driver.want(work(server()))
                after = (await driver.until_ready()).instances[0]
                assert (after.id, after.pid) == (before.id, before.pid)

    asyncio.run(scenario())


def test_what_an_instance_leaves_behind_ends_with_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with cluster(tmp_path) as shim, Driver(shim) as driver:
            driver.want(work(shell("setsid sleep 600 & sleep 600 & exec sleep 600")))
            await driver.until_ready()
            assert len(processes_below(tmp_path)) == 3
            driver.want()
            await driver.until(lambda works: not works)
            assert processes_below(tmp_path) == {}

    asyncio.run(scenario())


def test_a_program_that_ignores_sigterm_is_killed_when_its_grace_is_over(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with cluster(tmp_path) as shim, Driver(shim) as driver:
            driver.want(work(shell("trap '' TERM; while :; do sleep 0.05; done", grace_seconds=0.3)))
            await driver.until_ready()
            driver.want()
            await driver.until(lambda works: not works)
            assert processes_below(tmp_path) == {}

    asyncio.run(scenario())


def test_a_command_that_does_not_exist_says_so_and_backs_off(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with cluster(tmp_path) as shim, Driver(shim) as driver:
            driver.want(work(server(command=("no-such-program",))))
            works = await driver.until(lambda works: works["uid-1"].instances and works["uid-1"].instances[0].restarts >= 2)
            (instance,) = works["uid-1"].instances
            assert instance.ended is not None
            assert instance.ended.reason == "StartFailed"
            assert "no-such-program: No such file" in instance.ended.message
            assert works["uid-1"].components[0].reason in ("StartFailed", "Starting")

    asyncio.run(scenario())


def test_the_delay_grows_and_is_capped() -> None:
    delays = [delay_after(failures) for failures in range(40)]
    assert delays[0] == 0.0
    assert delays[1:4] == [0.5, 1.0, 2.0]
    assert delays == sorted(delays)
    assert delays[-1] == MAX_DELAY


def test_a_hanging_instance_is_restarted_by_its_liveness_probe(tmp_path: Path) -> None:
    async def scenario() -> None:
        port = free_port()
        probe = Probe(command=("test", "!", "-e", "sick"), period_seconds=0.1, timeout_seconds=5.0, failure_threshold=2)
        async with cluster(tmp_path) as shim, Driver(shim) as driver:
            driver.want(work(server(port=port, liveness=probe)))
            before = (await driver.until_ready()).instances[0]
            (tmp_path / "process/instances" / before.id / "work/sick").touch()
            works = await driver.until(lambda works: works["uid-1"].instances[0].restarts > 0)
            ended = works["uid-1"].instances[0].ended
            assert ended is not None
            assert ended.reason == "Unhealthy"
            (tmp_path / "process/instances" / before.id / "work/sick").unlink()
            after = (await driver.until_ready()).instances[0]
            assert after.pid != before.pid
            assert {each.id for observed in driver.history for one in observed.works for each in one.instances} == {before.id}, (
                "a spare was started"
            )

    asyncio.run(scenario())


def test_a_command_that_serves_only_its_site_port_is_probed_there_in_person(tmp_path: Path) -> None:
    """``uvicorn --fd 3`` knows no second socket. In a swap the answer of the old revision must not make the new one ready."""

    async def scenario() -> None:
        port = free_port()
        env = {"ONLY_SITE": "1"}
        async with cluster(tmp_path) as shim, Driver(shim) as driver:
            driver.want(work(server(port=port, env=env)))
            await driver.until_ready()
            async with Asker(port) as asker:
                driver.want(work(server(version="v2", port=port, env={**env, "SLOW_START": "1"}), version=2))
                await driver.until(lambda works: any(i.revision == "v2" and i.phase is Phase.RUNNING for i in works["uid-1"].instances))
                assert [i.revision for i in driver.works["uid-1"].instances if i.ready] == ["v1"]
                await driver.until_ready(revision="v2")
            assert asker.failures == []

    asyncio.run(scenario())


@pytest.mark.parametrize("mode", ["best", "rlimit"])
def test_more_memory_than_it_asked_for_ends_the_instance_and_the_reason_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """64 MiB are touched where 32 were asked for. Where no control group can be made, whoever measures the use ends it."""

    async def scenario() -> None:
        monkeypatch.setattr(session, "USAGE_SECONDS", 0.2)
        options = {"limits": "rlimit"} if mode == "rlimit" else {}
        async with cluster(tmp_path, supervisor_options=options) as shim, Driver(shim) as driver:
            limits = (await shim.describe()).limits
            assert limits == "rlimit" if mode == "rlimit" else limits in ("cgroup-v1", "cgroup-v2", "rlimit")
            script = "import os, time; print('eating', flush=True); x = os.urandom(64 << 20); print('full', flush=True); time.sleep(600)"
            driver.want(work(server(command=("python3", "-c", script), resources=Resources(memory_bytes=32 << 20))))
            works = await driver.until(lambda works: works["uid-1"].instances and works["uid-1"].instances[0].restarts)
            ended = works["uid-1"].instances[0].ended
            assert ended is not None
            assert ended.reason == "OOMKilled"
            assert "more than the 33554432 bytes of memory that it asked for" in ended.message
            assert ended.exit_code == 137
            assert ended.last_line in (("eating", "full") if limits == "rlimit" else ("eating",))
            works = await driver.until(lambda works: works["uid-1"].components[0].reason == "CrashLoopBackOff")
            assert "OOMKilled: it used more than" in works["uid-1"].components[0].message

    asyncio.run(scenario())


def test_a_crash_loop_is_named_with_its_restarts_and_its_last_words(tmp_path: Path) -> None:
    script = r"echo before; printf 'cannot open \033[31m/dev/ttyS9\033[0m\a\r\n\n'; exit 3"

    async def scenario() -> None:
        async with cluster(tmp_path) as shim, Driver(shim) as driver:
            driver.want(work(shell(script, readiness=Probe(command=("false",)))))
            works = await driver.until(lambda works: any(i.reason == "CrashLoopBackOff" for i in works["uid-1"].instances))
            assert works["uid-1"].components[0].reason == "CrashLoopBackOff"
            (instance,) = works["uid-1"].instances
            said = "it exited with code 3; its last log line: cannot open /dev/ttyS9; restart 3 comes after a pause of 2 s"
            assert instance.message == said
            assert instance.ended == Ended(
                reason="Error",
                message="it exited with code 3",
                exit_code=3,
                last_line="cannot open /dev/ttyS9",
                started_unix=instance.ended.started_unix if instance.ended else 0,
                finished_unix=instance.ended.finished_unix if instance.ended else 0,
            )
            assert 0 < instance.ended.started_unix <= instance.ended.finished_unix
            driver.want(work(server(version="v2"), version=2))
            seen = await driver.until_ready(revision="v2")
            assert (seen.components[0].reason, seen.instances[0].ended) == ("", None)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        (b"", ""),
        (b"\n\n  \n", ""),
        (b"one\ntwo\n\n", "two"),
        (b"no end", "no end"),
        (b"50%\r100%\r\n", "100%"),
        ("naïve → ✓\n".encode(), "naïve → ✓"),
        (b"a\tb\x00\x07\x1b[1;31mred\x1b[0m\n", "a bred"),
        (b"\x1b]0;title\x07said\n", "said"),
        ("safe\u202edesrever\u2066\n".encode(), "safedesrever"),
        (b"\xff\xfe broken\n", "\ufffd\ufffd broken"),
        (b"x" * 100_000, "x" * 199 + "…"),
    ],
)
def test_the_last_line_is_safe_to_show(tmp_path: Path, written: bytes, shown: str) -> None:
    log = LogFile(str(tmp_path))
    assert log.last_line() == ""  # no log yet
    (tmp_path / "log").write_bytes(written)
    assert log.last_line() == shown


def test_a_port_that_is_taken_is_told_and_taken_when_it_is_free(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with cluster(tmp_path) as shim, Driver(shim) as driver:
            squatter = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
            port = squatter.sockets[0].getsockname()[1]
            driver.want(work(server(port=port)))
            works = await driver.until(lambda works: works["uid-1"].components[0].reason == "PortUnavailable")
            assert f"port {port} on 127.0.0.1 cannot be bound: Address already in use" in works["uid-1"].components[0].message
            assert works["uid-1"].instances == ()
            squatter.close()
            await squatter.wait_closed()
            assert (await driver.until_ready()).components[0].port == port

    asyncio.run(scenario())


def test_secrets_are_private_on_disk_and_the_controllers_environment_stays_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        monkeypatch.setenv("CONTROLLER_SECRET", "mine")
        files = (File(path="keys/secret.txt", content=b"s", secret=True), File(path="run.sh", content=b"x", mode=0o755))
        async with cluster(tmp_path) as shim, Driver(shim) as driver:
            driver.want(work(shell("env; exec sleep 600", secret_env={"PASSWORD": "hidden"}, files=files)))
            (instance,) = (await driver.until_ready()).instances
            home = tmp_path / "process/instances" / instance.id
            modes = {name: stat.S_IMODE((home / name).stat().st_mode) for name in PRIVATE_FILES}
            assert set(modes.values()) == {0o600}
            assert stat.S_IMODE((home / "work/run.sh").stat().st_mode) == 0o755
            assert stat.S_IMODE((tmp_path / "process").stat().st_mode) == 0o700
            assert stat.S_IMODE((tmp_path / "process/supervisor.sock").stat().st_mode) == 0o600
            said = await logs(shim, instance.id)
            assert "PASSWORD=hidden" in said
            assert "CONTROLLER_SECRET" not in said

    asyncio.run(scenario())


def test_a_path_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with cluster(tmp_path) as shim, Driver(shim) as driver:
            driver.want(work(server(files=(File(path="../../evil", content=b""),))))
            works = await driver.until(lambda works: works["uid-1"].components[0].reason == "StartRefused")
            assert "does not lie inside the working folder" in works["uid-1"].components[0].message
            assert not (tmp_path / "process/instances/evil").exists()

    asyncio.run(scenario())


def test_logs_can_be_followed_cut_and_stamped_and_the_last_run_is_kept(tmp_path: Path) -> None:
    async def scenario() -> None:
        script = "echo one; echo two; echo three; while [ ! -e go ]; do sleep 0.02; done; echo four; rm go; exit 3"
        async with cluster(tmp_path) as shim, Driver(shim) as driver:
            driver.want(work(shell(script)))
            name = (await driver.until_ready()).instances[0].id
            assert await logs(shim, name) == "one\ntwo\nthree\n"
            assert await logs(shim, name, tailLines="2") == "two\nthree\n"
            assert await logs(shim, name, tailLines="0") == ""
            assert await logs(shim, name, limitBytes="5") == "one\nt"
            assert await logs(shim, name, sinceSeconds="3600") == "one\ntwo\nthree\n"
            stamped = (await logs(shim, name, timestamps="true")).splitlines()
            assert [line.split(" ")[1] for line in stamped] == ["one", "two", "three"]
            assert all(line.startswith("20") and line.split(" ")[0].endswith("Z") for line in stamped)
            with pytest.raises(ShimError, match="tailLines='many'"):
                await logs(shim, name, tailLines="many")
            with pytest.raises(ShimError, match="has no previous run"):
                await logs(shim, name, previous="true")
            following = asyncio.create_task(logs(shim, name, follow="true"))
            await asyncio.sleep(0)
            (tmp_path / "process/instances" / name / "work/go").touch()
            assert await following == "one\ntwo\nthree\nfour\n"
            await driver.until(lambda works: works["uid-1"].instances[0].restarts == 1)
            await driver.until_ready()
            assert await logs(shim, name, previous="true") == "one\ntwo\nthree\nfour\n"
            ended = driver.works["uid-1"].instances[0].ended
            assert ended is not None
            assert (ended.message, ended.last_line) == ("it exited with code 3", "four")

    asyncio.run(scenario())


def test_a_long_log_rotates_and_loses_no_line_that_it_still_holds(tmp_path: Path) -> None:
    async def scenario() -> None:
        script = "import time\nfor i in range(60000):\n print(f'{i:08d}' + 'x' * 91)\n i % 500 or time.sleep(0.03)\ntime.sleep(600)"
        async with cluster(tmp_path, supervisor_options={"log-bytes": str(2 << 20)}) as shim, Driver(shim) as driver:
            driver.want(work(server(command=("python3", "-u", "-c", script))))
            name = (await driver.until_ready()).instances[0].id
            stream = await shim.open(OpenTarget(kind="logs", instance=name, options={"follow": "true"}))
            numbers: list[int] = []
            rest = b""
            while not numbers or numbers[-1] != 59999:
                *lines, rest = (rest + await stream.read()).split(b"\n")
                numbers.extend(int(line[:8]) for line in lines)
            stream.abort()
            assert numbers == list(range(numbers[0], 60000))
            home = tmp_path / "process/instances" / name
            assert (home / "log.1").exists()
            assert (home / "log").stat().st_size + (home / "log.1").stat().st_size < 6_000_000
            assert len((await logs(shim, name, tailLines="25000")).splitlines()) == 25000

    asyncio.run(scenario())


def test_the_control_socket_answers_nonsense_by_hanging_up(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with cluster(tmp_path) as shim, Driver(shim) as driver:
            driver.want(work(server()))
            before = await driver.until_ready()
            for nonsense in (b"\xff\n", b"{}\n", b'{"id": 1}\n', b"x" * 200_000, b'{"id": 1, "op": "start", "instance": "../x"}\n'):
                with await connect(tmp_path / "process/supervisor.sock") as sock:
                    loop = asyncio.get_running_loop()
                    with contextlib.suppress(ConnectionError):
                        await loop.sock_sendall(sock, nonsense)
                        answer = await loop.sock_recv(sock, 4096)
                        assert answer == b"" or b"error" in answer
            with pytest.raises(ShimError, match="does not know that operation"):
                await shim._supervisor.call("explode")
            driver.want(work(server()))
            assert (await driver.until_ready()).instances[0].pid == before.instances[0].pid

    asyncio.run(scenario())


def test_an_idle_cluster_says_nothing_and_a_folder_without_a_supervisor_has_nothing_to_end(tmp_path: Path) -> None:
    assert client.end(tmp_path / "nothing") is False
    tmp_path.joinpath("process").mkdir()
    assert client.end(tmp_path / "process") is False


def test_the_supervisor_stays_small(tmp_path: Path) -> None:
    """Counted as if nobody else used the interpreter: resident, not proportional."""

    async def scenario() -> None:
        async with cluster(tmp_path) as shim, Driver(shim) as driver:
            driver.want(*(work(server(port=free_port()), uid=f"uid-{number}") for number in range(5)))
            await driver.until(lambda works: len(works) == 5 and all(seen.components[0].ready for seen in works.values()))
            status = Path(f"/proc/{supervisor_pid(driver)}/status").read_text()
            resident = int(status.partition("VmRSS:")[2].split()[0])
            assert resident <= 12 * 1024

    asyncio.run(scenario())


def test_a_long_path_is_no_obstacle(tmp_path: Path) -> None:
    async def scenario() -> None:
        port = free_port()
        deep = tmp_path / ("d" * 100) / ("e" * 100)
        async with cluster(deep) as shim, Driver(shim) as driver:
            driver.want(work(server(port=port)))
            await driver.until_ready()
            assert (await ask(port))[0] == 200

    asyncio.run(scenario())
