"""kubectl through two hops of the tree beside kubectl straight to the API server: on a real node, in turns."""

import asyncio
import contextlib
import os
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from banyanctl.endpoint import read
from benchmarks import clusters, gauges, pairs, records
from benchmarks.api import Pool
from benchmarks.harness import Site, all_ready, growing
from benchmarks.members import trunk
from benchmarks.records import Options, Row
from e2e.testbed import Member, Shape
from tools import needs

DIRECT = "kubectl, straight to the API server"
HERE = records.HERE
INOTIFY = Path("/proc/sys/fs/inotify/max_user_instances")
SERVES = "while true; do dd if=/dev/zero bs=65536 count={blocks} 2>/dev/null | nc -l -p 8080; done"
TALKS = "while true; do echo the time is $(date); sleep 1; done"


async def measure(options: Options) -> list[Row]:
    gets, rounds, blocks, logs = (2, 1, 64, 4) if options.quick else (60, 3, 8192, 200)
    async with clusters.clusters(whole=Shape.whole()) as found, growing(options.folder) as tree:
        member = found["whole"]
        root, region = await trunk(tree)
        site = await clusters.join(tree, region, member)
        await all_ready(root, 3)
        through = Path(tree.folder) / "through.kubeconfig"
        await root.run("kubeconfig", member.name, "--write", str(through))
        await asyncio.to_thread(pods, member, blocks)
        took = await got(member, through, gets)
        rates = await forwarded(member, through, rounds, blocks * 65536)
        with watchers(20 * logs):
            grown = await followed(through, {"root": root, "region": region, "edge": site}, logs)
    direct, tree_ = statistics.median(took["direct"]), statistics.median(took["tree"])
    note = f"Kubernetes' own kubectl, {gets} times each, in turns; a whole cluster with a node, its controller on the host that measures"
    shares = [100 * ours / theirs for ours, theirs in zip(rates["tree"], rates["direct"], strict=True)]
    size = blocks * 65536 / gauges.MIB
    most = max(grown, key=lambda name: grown[name])
    return [
        Row(what="kubectl get pods through two hops, P50", measured=tree_, unit="ms", peer=DIRECT, peer_measured=direct, peer_source=HERE,
            note=note, ratio=pairs.ratio(took["tree"], took["direct"])),
        Row(what="kubectl get pods: added by two hops, P50", target=5, measured=tree_ - direct, unit="ms"),
        records.rounds(f"kubectl port-forward through two hops, download of {size:,.0f} MiB", rates["tree"], "MiB/s", peer=DIRECT,
                       theirs=rates["direct"]),
        records.rounds("port-forward: of kubectl's own direct one", shares, "%", target=40, least=True),
        Row(what=f"{logs} concurrent logs -f: growth of the relay", target=64, measured=grown["region"], unit="MiB"),
        Row(what=f"{logs} concurrent logs -f: growth of the controller that grew most ({most})", measured=grown[most], unit="MiB"),
    ]  # fmt: skip


def pods(member: Member, blocks: int) -> None:
    member.kubectl("create", "clusterrolebinding", "people", "--clusterrole=cluster-admin", "--group=banyan:admin")
    run = ["run", "--image=busybox:testbed", "--restart=Never"]
    member.kubectl(*run, "talker", "--", "sh", "-c", TALKS)
    member.kubectl(*run, "server", "--", "sh", "-c", SERVES.format(blocks=blocks))
    member.kubectl("wait", "--for=condition=Ready", "pod/talker", "pod/server", "--timeout=60s")


def argv(kubeconfig: Path, *arguments: str) -> list[str]:
    return [str(needs.plain_kubectl()), "--kubeconfig", str(kubeconfig), "-n", "default", *arguments]


def environment(folder: Path) -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")} | {"HOME": str(folder)}


async def got(member: Member, through: Path, count: int) -> dict[str, list[float]]:
    took: dict[str, list[float]] = {"direct": [], "tree": []}
    ways = [("direct", member.kubeconfig), ("tree", through)]
    for number in range(count + 1):
        ways.reverse()  # neither always comes first
        for name, kubeconfig in ways:
            began = time.monotonic()
            process = await asyncio.create_subprocess_exec(
                *argv(kubeconfig, "get", "pods", "-o", "name"), stdout=asyncio.subprocess.DEVNULL, env=environment(member.folder)
            )
            if await process.wait() != 0:
                raise RuntimeError(f"kubectl get pods ({name}) ended with {process.returncode}")
            if number:  # the first one fills kubectl's cache of what the server offers
                took[name].append(1000 * (time.monotonic() - began))
    return took


async def forwarded(member: Member, through: Path, rounds: int, size: int) -> dict[str, list[float]]:
    """MiB/s."""
    rates: dict[str, list[float]] = {"direct": [], "tree": []}
    for _ in range(rounds):
        for name, kubeconfig in (("direct", member.kubeconfig), ("tree", through)):
            async with forwarding(kubeconfig, member.folder) as port:
                began = time.monotonic()
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                got = 0
                while data := await reader.read(1 << 20):
                    got += len(data)
                rates[name].append(got / gauges.MIB / (time.monotonic() - began))
                writer.close()
            if got != size:
                raise RuntimeError(f"port-forward ({name}): {got:,} of {size:,} bytes arrived")
            records.say(f"port-forward, {name}: {rates[name][-1]:.0f} MiB/s")
            await asyncio.sleep(1.0)  # until the pod listens again
    return rates


@contextlib.asynccontextmanager
async def forwarding(kubeconfig: Path, home: Path) -> AsyncIterator[int]:
    process = await asyncio.create_subprocess_exec(
        *argv(kubeconfig, "port-forward", "pod/server", ":8080"), stdout=asyncio.subprocess.PIPE, env=environment(home)
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(30):
            line = (await process.stdout.readline()).decode()
        yield int(line.partition("127.0.0.1:")[2].split()[0])
    finally:
        process.terminate()
        await process.wait()


@contextlib.contextmanager
def watchers(count: int) -> Iterator[None]:
    """A kubelet watches the file of each log that is followed; many systems let a user have 128 such watchers."""
    before = INOTIFY.read_text(encoding="ascii")
    INOTIFY.write_text(str(max(count, int(before))), encoding="ascii")
    try:
        yield
    finally:
        INOTIFY.write_text(before, encoding="ascii")


async def followed(through: Path, sites: dict[str, Site], count: int) -> dict[str, float]:
    """MiB by which each controller on the way grows with so many logs followed."""
    path = "/api/v1/namespaces/default/pods/talker/log?follow=true&tailLines=1"
    before = {name: gauges.pss(site.pid) for name, site in sites.items()}
    endpoint = read(through)
    prefix = endpoint.server.partition("://")[2].partition("/")[2]
    async with Pool(endpoint) as pool:
        connections = [await pool.connect() for _ in range(count)]
        for connection in connections:
            connection.send("GET", f"/{prefix}{path}")
        for connection in connections:
            status, _ = await connection.head()
            if status != 200:
                raise RuntimeError(f"a log that is followed: {status}")
        streams = [connection.chunks() for connection in connections]
        for _ in range(5):
            await asyncio.gather(*(anext(stream) for stream in streams))
        return {name: (gauges.pss(site.pid) - before[name]) / gauges.MIB for name, site in sites.items()}
