"""The eight steps of the demo, in the order in which they happen. Every claim on the screen is read from the tree, or fails the demo."""

import asyncio
import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from msgspec import Struct

from banyanctl.demo import processes
from banyanctl.demo.ports import claim_port
from banyanctl.demo.screen import Screen
from banyanctl.demo.sites import Plan, Site
from banyanctl.demo.wire import Wire
from banyanctl.demo.words import output, shown
from cluster_controller.errors import BanyanError, Unreachable

API = "/apis/banyan.dev/v1alpha1"
APPS = f"{API}/namespaces/default/applications"
WAIT_SECONDS = 60.0
SURE = 0.9  # confidence of an answer that counts
BIG = {"BANYAN_CAPACITY": "cpu=1,memory=1Gi"}
SMALL = {"BANYAN_CAPACITY": "cpu=100m,memory=64Mi"}
PLANS = (
    Plan(name="root"),
    Plan(name="region-a", parent="root"),
    Plan(name="region-b", parent="root"),
    Plan(name="edge-1", parent="region-a", labels="tier=edge", environment=BIG | {"BANYAN_SITE_BIND": "127.0.0.1"}, leaf=True),
    Plan(name="edge-2", parent="region-a", labels="tier=edge", environment=SMALL | {"BANYAN_SITE_BIND": "127.0.0.2"}, leaf=True),
    Plan(name="edge-3", parent="region-b", labels="tier=edge", environment=BIG | {"BANYAN_SITE_BIND": "127.0.0.3"}, leaf=True),
)


class Row(Struct, frozen=True):
    what: str
    result: str
    seconds: float


class Story:
    """``folder`` holds the six data folders and logs; ``examples`` the emotion model and the device."""

    def __init__(self, folder: Path, examples: Path, screen: Screen) -> None:
        self.folder = folder
        self.examples = examples
        self.screen = screen
        self.sites: dict[str, Site] = {}
        self.rows: list[Row] = []
        self.port, self._claim = claim_port(8500)

    # --- the whole ---

    async def play(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.screen.title("Banyan", "a tree of six clusters on this machine: it serves, is cut, reboots in the dark, and heals")
        self.screen.command(self._settings())
        await self.grow()
        await self.publish()
        await self.deploy()
        await self.ask()
        await self.cut()
        await self.meanwhile()
        await self.heal()
        self.summary()

    async def close(self) -> None:
        """Stop everything that was started, children first; what goes wrong with one site keeps no other alive."""
        self._claim.close()
        depths = [{plan.name for plan in PLANS if plan.parent.partition("-")[0] == level} for level in ("region", "root", "")]
        failed: list[BaseException] = []
        for names in depths:
            stops = (site.stop() for name, site in self.sites.items() if name in names)
            failed += [found for found in await asyncio.gather(*stops, return_exceptions=True) if found is not None]
        for site in self.sites.values():
            if site.wire is not None:
                await site.wire.close()
        if failed:
            raise failed[0]

    # --- 1 ---

    async def grow(self) -> None:
        self.screen.step(1, "six clusters join; only children dial")
        began = time.monotonic()
        root = self._add(PLANS[0])
        await root.run("init", "root", "--api-listen", "127.0.0.1:0", "--tunnel-listen", "127.0.0.1:0", "--shim", "none")
        root.start()
        await root.ready()
        self.screen.command("banyan init root && banyan run")
        for parents in (("root",), ("region-a", "region-b")):
            plans = [plan for plan in PLANS if plan.parent in parents]
            await asyncio.gather(*(self._join(plan) for plan in plans))
        await self._until("all six are Ready at the root", self._all_ready)
        self.screen.block(await root.run("tree"))
        self._row("six clusters join, mutual TLS, one-time tokens", "6 Ready", began)

    async def _join(self, plan: Plan) -> None:
        parent = self.sites[plan.parent]
        made = json.loads(await parent.run("token", "create", "-o", "json"))
        wire = Wire(plan.name, plan.parent)
        site = self._add(plan, wire)
        site.join(made["status"]["token"], await wire.open())
        await site.ready()
        self.screen.command(f"banyan join {made['status']['token'][:16]}… --name {plan.name}   (below {plan.parent})")

    def _add(self, plan: Plan, wire: Wire | None = None) -> Site:
        site = self.sites[plan.name] = Site(plan, self.folder / plan.name, wire)
        return site

    async def _all_ready(self) -> bool:
        clusters = await self._clusters()
        return len(clusters) == len(PLANS) and all(item["status"]["phase"] == "Ready" for item in clusters.values())

    # --- 2 ---

    async def publish(self) -> None:
        self.screen.step(2, "a real model is published at the root")
        began = time.monotonic()
        said = await self.root.run("model", "publish", "emotion", str(self.examples / "model-1" / "model.onnx"), "--version", "1")
        self.screen.command("banyan model publish emotion examples/emotion/model-1/model.onnx --version 1")
        self.screen.block(said)
        self._row("model published", "emotion 1", began)

    # --- 3 ---

    async def deploy(self) -> None:
        self.screen.step(3, "one HTTPS call deploys an application; labels and capacity decide where")
        began = time.monotonic()
        application = self._application("1")
        body = self.folder / "application.json"
        body.write_text(json.dumps(application, indent=1))
        credential = self._credential()
        server = self.root.endpoint.server
        call = ["curl", "-sS", "--fail-with-body", *credential, "-H", "Content-Type: application/json", "-X", "POST"]
        call += ["--data-binary", f"@{body}", f"{server}{APPS}"]
        self._curl = shown(call, self.folder)
        self.screen.command(self._curl)
        await self._post(call, application)
        await self._until("two replicas are ready", lambda: self._is_ready(2))
        status = await self._status()
        where = [row["name"] for row in status["clusters"]]
        if sorted(where) != ["edge-1", "edge-3"]:
            raise Unreachable(f"it runs on {where}, not on edge-1 and edge-3")
        self.screen.good(f"running on {' and '.join(sorted(where))}")
        explained = await self.root.get(f"{APPS}/emotion/explain")
        third = next(row for row in explained["clusters"] if row["cluster"] == "edge-2")
        self.screen.command("banyan explain emotion")
        self.screen.say(f"edge-2 {third['components'][0]['reason']}")
        self._row("application deployed and ready on two edges", "edge-1, edge-3", began)

    async def _post(self, call: list[str], application: dict[str, Any]) -> None:
        if shutil.which("curl"):
            code, out, err = await output(call)
            if code != 0:
                raise Unreachable(f"curl failed: {(out + err)[-600:]}")
            return
        self.screen.say("curl is not installed here; the demo makes the same call itself")
        code, answer = await self.root.request("POST", APPS, application)
        if code >= 300:
            raise Unreachable(answer.decode(errors="replace"))

    # --- 4 ---

    async def ask(self) -> None:
        self.screen.step(4, "a device asks for a real photograph, through the root")
        began = time.monotonic()
        device = self._device_words(f"{self.root.endpoint.server}{APPS}/emotion/proxy/v2/models/emotion/infer", remote=True)
        self.screen.command(shown(device, self.folder))
        answer = self._answer = self._happy(await self._device(device))
        self.screen.good(
            f"{answer['label']}, confidence {answer['confidence']:.3f}; route {answer['route']}; {answer['milliseconds']:.1f} ms"
        )
        self._row("photograph answered through the tree", f"{answer['label']} {answer['confidence']:.3f}", began)

    # --- 5 ---

    async def cut(self) -> None:
        self.screen.step(5, "the link above region-a is cut; edge-1 loses power and starts in the dark")
        began = time.monotonic()
        self._wire("region-a").cut()
        edge = self.sites["edge-1"]
        killed = edge.kill_everything()
        self.screen.bad(f"region-a is cut off; {killed} processes of edge-1 killed with SIGKILL")
        await self._until("the root shows edge-1 stale", self._edge_is_stale)
        restarted = time.monotonic()
        self._wire("edge-1").cut()  # no parent in reach at all: it starts from its own disk
        edge.start()
        answer = self._happy(await self._answered_locally())
        if (answer["version"], answer["confidence"]) != (self._answer["version"], self._answer["confidence"]):
            raise Unreachable(f"the same photograph got another answer: {self._answer}, now {answer}")
        seconds = time.monotonic() - restarted
        self.screen.good(
            f"edge-1 serves again {seconds:.1f} s after its start, with no parent in reach: "
            f"{answer['label']} {answer['confidence']:.3f} at its own port 127.0.0.1:{self.port}"
        )
        self.screen.say("the root says since when it does not know, and which hop is broken:")
        self.screen.block(await self.root.run("tree"))
        self._wire("edge-1").heal()
        self._row("power lost at edge-1, restarted with no parent", f"serves after {seconds:.1f} s", began)

    async def _edge_is_stale(self) -> bool:
        clusters = await self._clusters()
        return clusters["edge-1"]["status"]["phase"] != "Ready" and "region-a" in clusters["edge-1"]["status"].get("brokenHop", "")

    async def _answered_locally(self) -> dict[str, Any]:
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                return await self._device(self._device_words(self._local_url))
            except Unreachable:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.2)

    # --- 6 ---

    async def meanwhile(self) -> None:
        self.screen.step(6, "meanwhile: version 2 at the root, a mistake refused, region-a on its own")
        began = time.monotonic()
        await self.root.run("model", "publish", "emotion", str(self.examples / "model-2" / "model.onnx"), "--version", "2")
        code, answer = await self.root.request("PUT", f"{APPS}/emotion", await self._changed("2"))
        if code != 200:
            raise Unreachable(f"version 2 was not taken: {answer.decode(errors='replace')}")
        self.screen.good("emotion version 2 (8 bits) is rolled out at the root; edge-3 follows, edge-1 cannot know yet")
        bad = self._application("1")
        bad["metadata"]["name"] = "mistake"
        bad["spec"]["components"][0]["resources"] = {"cpu": "-1"}
        code, answer = await self.root.request("POST", APPS, bad)
        if code < 400:
            raise Unreachable("the bad application was taken")
        self.screen.good(f"a bad application is refused ({code}): {json.loads(answer)['message'][:160]}")
        beacon = self._beacon()
        code, answer = await self.sites["region-a"].request("POST", APPS, beacon)
        if code != 201:
            raise Unreachable(f"region-a could not create its own application: {answer.decode(errors='replace')}")
        await self._until("region-a's own application runs", self._beacon_runs)
        self.screen.good("region-a, cut off, creates an application of its own and runs it")
        await self._until("edge-3 serves version 2", self._edge_three_is_new)
        self._row("version 2 rolled out; region-a acts alone", "1 refused, 1 created", began)

    async def _changed(self, version: str) -> dict[str, Any]:
        document: dict[str, Any] = await self.root.get(f"{APPS}/emotion")
        document["spec"]["components"][0]["model"]["version"] = version
        return document

    async def _beacon_runs(self) -> bool:
        document = await self.sites["region-a"].get(f"{APPS}/beacon")
        return bool(document.get("status", {}).get("ready", 0) >= 1)

    async def _edge_three_is_new(self) -> bool:
        with contextlib.suppress(Unreachable):
            return await self._version(f"http://127.0.0.3:{self.port}/v2/models/emotion/infer") == "2"
        return False

    # --- 7 ---

    async def heal(self) -> None:
        self.screen.step(7, "the link heals; a client asks edge-1 all the time")
        began = time.monotonic()
        client = await self._client()
        try:
            await asyncio.sleep(0.5)
            self._wire("region-a").heal()
            await self._until("edge-1 serves version 2", self._edge_one_is_new)
            await self._until("all is ready and up to date", lambda: self._is_ready(2, updated=True))
            await self._until("the root sees region-a's own application", self._root_sees_beacon)
            await self._until("all six are Ready again", self._all_ready)
        finally:
            counted = await self._end_client(client)
        failed, asked = counted["failures"], counted["requests"]
        if failed:
            raise Unreachable(f"{failed} of {asked} requests failed while version 2 came: {counted}")
        self.screen.good(f"edge-1 came to version 2: {asked} requests, {failed} failed")
        await self._until("each instance runs once, and the root counts them so", self._nothing_twice)
        self.screen.good("nothing runs twice: 2 processes of emotion and 1 of beacon in all, and the root was told the same")
        await self._reports()
        self.screen.block(await self.root.run("tree"))
        self._row("healed: edge-1 at version 2", f"{asked} requests, {failed} failed", began)

    async def _edge_one_is_new(self) -> bool:
        return await self._version(self._local_url) == "2"

    async def _root_sees_beacon(self) -> bool:
        items = await self.root.get(f"{API}/namespaces/default/subtreeapplications")
        return any(item["metadata"]["name"] == "beacon.region-a" for item in items["items"])

    async def _nothing_twice(self) -> bool:
        """Count the processes of this machine, and compare with what the root was told. Version 1 may still be about to end."""
        running = sum((processes.instances(site.folder) for site in self.sites.values()), Counter[str]())
        return running == {"emotion": 2, "beacon": 1} and (await self._status())["ready"] == 2

    async def _reports(self) -> None:
        """What the root counts of the reports that came over the healed link."""
        metrics = (await self.root.request("GET", "/metrics"))[1].decode()
        applied, known = (_counted(metrics, f"banyan_sync_{what}_objects_total", "region-a") for what in ("applied", "known"))
        self.screen.good(f"reports of region-a since the link healed: {applied} applied at the root, {known} that came again were dropped")

    async def _client(self) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable, str(self.examples / "device.py"), "--url", self._local_url, "--loop", "--connections", "both", "--json",
            "--interval", "0.01", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL, limit=1 << 20,
        )  # fmt: skip

    async def _end_client(self, client: asyncio.subprocess.Process) -> dict[str, Any]:
        with contextlib.suppress(ProcessLookupError):
            client.send_signal(signal.SIGTERM)
        out, _ = await client.communicate()
        lines = [line for line in out.decode().splitlines() if line.startswith("{")]
        if not lines:
            raise Unreachable("the client did not report")
        counted: dict[str, Any] = json.loads(lines[-1])
        return counted

    # --- 8 ---

    def summary(self) -> None:
        self.screen.table(
            "What happened", ["what", "result", "seconds"], [(row.what, row.result, f"{row.seconds:.1f}") for row in self.rows]
        )
        wires = [site.wire for site in self.sites.values() if site.wire is not None]
        self.screen.table(
            "Bytes on each link, TLS included",
            ["link", "up", "down"],
            [(f"{wire.child} → {wire.parent}", f"{wire.up:,}", f"{wire.down:,}") for wire in wires],
        )

    def next_commands(self) -> None:
        """For a tree that is left running."""
        self.screen.say("The tree is running; Ctrl-C here stops it all. In another terminal, in this folder:")
        activate = Path(sys.prefix, "bin", "activate")
        if activate.exists():
            self.screen.command(shown([".", str(activate)], self.folder))
        self.screen.command(self._settings())
        self.screen.command("banyan tree")
        self.screen.command("banyan --at region-a logs beacon --tail 2")
        self.screen.command("banyan delete application emotion --wait")
        self.screen.command(self._curl)
        self.screen.command("banyan explain emotion")
        self.screen.command('kubectl --kubeconfig "$FOLDER"/root/admin.kubeconfig get clusters')
        self.screen.command(
            'banyan kubeconfig edge-1 --banyan --write "$FOLDER"/edge-1.kubeconfig && '
            'kubectl --kubeconfig "$FOLDER"/edge-1.kubeconfig get pods'
        )

    # --- tools ---

    @property
    def root(self) -> Site:
        return self.sites["root"]

    @property
    def _local_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v2/models/emotion/infer"

    def _settings(self) -> str:
        """What the commands that are shown refer to."""
        return f'FOLDER={shlex.quote(str(self.folder))}; export BANYAN_DATA="$FOLDER"/root'

    def _wire(self, name: str) -> Wire:
        wire = self.sites[name].wire
        assert wire is not None
        return wire

    def _application(self, version: str) -> dict[str, Any]:
        return {
            "apiVersion": "banyan.dev/v1alpha1",
            "kind": "Application",
            "metadata": {"name": "emotion", "namespace": "default"},
            "spec": {
                "components": [
                    {
                        "name": "serve",
                        "model": {"name": "emotion", "version": version},
                        "replicas": 2,
                        "resources": {"cpu": "250m", "memory": "192Mi"},
                        "expose": {"port": self.port},
                    }
                ],
                "placement": {"clusterSelector": {"matchLabels": {"tier": "edge"}}},
            },
        }

    def _beacon(self) -> dict[str, Any]:
        command = [sys.executable, "-u", "-c", "import time\nwhile True:\n    print('lit', flush=True)\n    time.sleep(5)"]
        return {
            "apiVersion": "banyan.dev/v1alpha1",
            "kind": "Application",
            "metadata": {"name": "beacon", "namespace": "default"},
            "spec": {"components": [{"name": "light", "command": command, "takesSocket": False}]},
        }

    def _credential(self) -> list[str]:
        """Options of curl, and files beside the data folders, for the root's admin."""
        endpoint = self.root.endpoint
        for name, text in (("ca.pem", endpoint.ca), ("admin.pem", endpoint.certificate + endpoint.key)):
            path = self.folder / name
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.write(text)
        return ["--cacert", str(self.folder / "ca.pem"), "--cert", str(self.folder / "admin.pem")]

    def _device_words(self, url: str, *, remote: bool = False) -> list[str]:
        credential = ["--ca", str(self.folder / "ca.pem"), "--cert", str(self.folder / "admin.pem")] if remote else []
        return [sys.executable, str(self.examples / "device.py"), "--url", url, *credential]

    async def _device(self, device: list[str]) -> dict[str, Any]:
        """One answer of the device program; Unreachable when there is none."""
        code, out, err = await output([*device, "--json"])
        if code != 0:
            raise Unreachable(f"{shown(device, self.folder)} got no answer: {(err or out).strip()[-400:]}")
        answer: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
        return answer

    def _happy(self, answer: dict[str, Any]) -> dict[str, Any]:
        if answer["label"] != "happy" or answer["confidence"] < SURE:
            raise Unreachable(f"the photograph is of a happy person, and the answer is {answer}")
        return answer

    async def _version(self, url: str) -> str:
        return str((await self._device(self._device_words(url)))["version"])

    async def _clusters(self) -> dict[str, Any]:
        listed = await self.root.get(f"{API}/clusters")
        return {item["metadata"]["name"]: item for item in listed["items"]}

    async def _status(self) -> dict[str, Any]:
        document: dict[str, Any] = await self.root.get(f"{APPS}/emotion")
        status: dict[str, Any] = document.get("status", {})
        return status

    async def _is_ready(self, count: int, *, updated: bool = False) -> bool:
        status = await self._status()
        return bool(status.get("ready", 0) == count and (not updated or status.get("updated", 0) == count))

    async def _until(self, what: str, check: Callable[[], Awaitable[bool]]) -> None:
        """Poll until it is so; Unreachable says what did not come."""
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            with contextlib.suppress(BanyanError):
                if await check():
                    return
            if time.monotonic() > deadline:
                raise Unreachable(f"after {WAIT_SECONDS:g} s it is still not so that {what}; the logs are in {self.folder}")
            await asyncio.sleep(0.1)

    def _row(self, what: str, result: str, began: float) -> None:
        self.rows.append(Row(what, result, time.monotonic() - began))


def _counted(metrics: str, name: str, peer: str) -> int:
    """One number out of a page of metrics."""
    found = re.search(rf'^{name}\{{[^}}]*peer="{peer}"[^}}]*\}} ([0-9.e+]+)$', metrics, re.MULTILINE)
    if found is None:
        raise Unreachable(f"the root counts no {name} of {peer}")
    return int(float(found[1]))
