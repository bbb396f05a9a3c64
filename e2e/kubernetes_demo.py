"""`make demo-kubernetes`: a real Kubernetes with a node and a k3s-style cluster join a tree; pods serve, are killed in the dark, and heal.

The root and a region are processes of this machine. `site-k8s` is a whole cluster at a site of its own behind NAT: API server, kubelet and
containerd in network and process namespaces, with the controller in a pod. `site-k3s` is an API server on SQLite, which is what k3s is made
of; its node is played by kwok, so its objects are real and its processes are not. Every claim on the screen is read from the tree or from
the clusters themselves, or fails the demo. Needs root rights, and what `make testbed` puts in place.
"""

import argparse
import asyncio
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from banyanctl.demo import command
from banyanctl.demo.screen import Screen
from banyanctl.demo.sites import Plan, Site
from banyanctl.demo.story import APPS, Story
from banyanctl.demo.words import output
from cluster_controller.errors import BanyanError, Unreachable
from e2e.at_site import edge_image, load_worker
from e2e.testbed import Member, Missing, Shape, Testbed
from e2e.testbed.machine import MachineError
from tools import needs
from tools.edge_image import CannotBuild

T = TypeVar("T")

EXAMPLES = Path(__file__).parent.parent / "examples" / "emotion"
K8S, K3S = "site-k8s", "site-k3s"
SYSTEM = "banyan-system"
FILES_ADDRESS = "10.96.77.77"  # the testbed has no name service, so that the pods need an address
BUSYBOX = "busybox:testbed"


class KubernetesStory(Story):
    """``folder`` holds the data folders and logs of root, region-a and site-k3s; site-k8s keeps its own."""

    def __init__(self, folder: Path, examples: Path, screen: Screen) -> None:
        super().__init__(folder, examples, screen)
        self.testbed = Testbed()
        self._threads: set[asyncio.Future[Any]] = set()
        self._image = ""

    async def play(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.screen.title("Banyan and Kubernetes", "two clusters join a tree; pods serve, are killed in the dark, serve again, and heal")
        self.screen.command(self._settings())
        await self.begin()
        await self.grow()
        await self.deploy()
        await self.ask()
        await self.cut()
        await self.heal()
        self.summary()

    async def close(self) -> None:
        """Stop everything that was started, also what is just starting; what goes wrong with one part keeps no other alive."""
        self._claim.close()
        await asyncio.gather(*self._threads, return_exceptions=True)
        sites = [self.sites[name].stop() for name in reversed(self.sites)]
        found = await asyncio.gather(*sites, asyncio.to_thread(self.testbed.close), return_exceptions=True)
        failed = [each for each in found if each is not None]
        if failed:
            raise failed[0]

    # --- 1 ---

    async def begin(self) -> None:
        self.screen.step(1, "two Kubernetes clusters start, each as a site has it; a root starts beside them")
        began = time.monotonic()
        image = self._thread(lambda: edge_image(self.folder))
        whole = self._thread(lambda: self.testbed.start(K8S, Shape.whole()))
        light = self._thread(lambda: self.testbed.start(K3S, Shape.k3s()))
        root = self._add(Plan(name="root"))
        await root.run("init", "root", "--api-listen", "127.0.0.1:0", "--tunnel-listen", "127.0.0.1:0", "--shim", "none")
        root.start()
        await root.ready()
        member = await whole
        self.screen.good(f"{K8S}: Kubernetes {member.shape.version}, one node, Ready after {member.started_s:.1f} s; nothing can call in")
        await light
        self.screen.good(f"{K3S}: an API server on SQLite, as in k3s; its node is played by kwok")
        tar = await image
        self._image = await self._thread(lambda: load_worker(member, tar))
        self.screen.good(f"the image {self._image}, written from the wheel without a container engine, is on the node")
        self._row("two clusters and a root start", f"{K8S}, {K3S}", began)

    # --- 2 ---

    async def grow(self) -> None:
        self.screen.step(2, "both become members: one by a manifest, one from outside; only they dial")
        began = time.monotonic()
        region = self._add(Plan(name="region-a", parent="root"))
        token = await self._token(self.root)
        tunnel = ["--api-listen", "127.0.0.1:0", "--tunnel-listen", f"{self.member.wan_host}:0", "--shim", "none"]
        region.launch(region.banyan("join", token, "--name", "region-a", *tunnel))
        await region.ready()
        await asyncio.gather(self._join_from_within(region), self._join_from_outside(region))
        await self._until("all four are Ready at the root", self._all_ready)
        self.screen.block(await self.root.run("tree"))
        self._row("members by `kubectl apply` and by `banyan join`", "4 Ready", began)

    async def _join_from_within(self, region: Site) -> None:
        token = await self._token(region)
        await self._thread(lambda: self.member.give_volume(SYSTEM, "10Gi", "by-hand"))
        options = ["--print-manifest", "--image", self._image, "--storage-class", "by-hand"]
        options += ["--kubernetes", f"files_url=https://{FILES_ADDRESS}:8444"]
        manifest = await region.run("join", token, "--name", K8S, *options)
        self.screen.command(f"banyan join {token[:16]}… --name {K8S} --print-manifest | kubectl apply -f -")
        await self._kubectl("apply", "-f", "-", stdin=manifest)
        await self._kubectl("apply", "-f", "-", stdin=json.dumps(files_service()))

    async def _join_from_outside(self, region: Site) -> None:
        token = await self._token(region)
        site = self._add(Plan(name=K3S, parent="region-a"))
        kubeconfig = str(self.testbed.members[K3S].kubeconfig)
        options = ["--api-listen", "127.0.0.1:0", "--tunnel-listen", "", "--shim", "k3s", "--kubeconfig", kubeconfig]
        site.launch(site.banyan("join", token, "--name", K3S, *options))
        self.screen.command(f"banyan join {token[:16]}… --name {K3S} --shim k3s --kubeconfig k3s.yaml")
        await site.ready()

    async def _token(self, parent: Site) -> str:
        return str(json.loads(await parent.run("token", "create", "-o", "json"))["status"]["token"])

    async def _all_ready(self) -> bool:
        clusters = await self._clusters()
        wanted = {"root", "region-a", K8S, K3S}
        return set(clusters) == wanted and all(item["status"]["phase"] == "Ready" for item in clusters.values())

    # --- 3 ---

    async def deploy(self) -> None:
        self.screen.step(3, "the application of `make demo`, unchanged, runs in pods; the model comes from the site's own controller")
        began = time.monotonic()
        await self.root.run("model", "publish", "emotion", str(self.examples / "model-1" / "model.onnx"), "--version", "1")
        self.screen.command("banyan model publish emotion examples/emotion/model-1/model.onnx --version 1")
        self._credential()
        for document in (self._application("1"), self._hello()):
            code, answer = await self.root.request("POST", APPS, document)
            if code != 201:
                raise Unreachable(f"{document['metadata']['name']} was not taken: {answer.decode(errors='replace')}")
        await self._until("the emotion application is ready", lambda: self._is_ready(1))
        await self._until("hello is ready", self._hello_is_ready)
        self.screen.block(await self._kubectl("get", "deployments,services,pods"))
        fetched = await self._kubectl("logs", await self._pod(), "-c", "fetch-model")
        self.screen.good(f"its init step: {fetched.splitlines()[0]}")
        self._row("a model published above, served in a pod two hops below", K8S, began)

    def _application(self, version: str) -> dict[str, Any]:
        document = super()._application(version)
        document["spec"]["components"][0]["replicas"] = 1
        document["spec"]["placement"] = {"clusterName": K8S}
        return document

    def _hello(self) -> dict[str, Any]:
        component = {"name": "web", "container": {"image": BUSYBOX, "command": ["httpd", "-f", "-p", "8080"]}, "replicas": 3}
        spec = {"components": [component], "placement": {"clusterName": K3S}}
        return {
            "apiVersion": "banyan.dev/v1alpha1",
            "kind": "Application",
            "metadata": {"name": "hello", "namespace": "default"},
            "spec": spec,
        }

    async def _hello_is_ready(self) -> bool:
        return bool((await self.root.get(f"{APPS}/hello")).get("status", {}).get("ready") == 3)

    # --- 4 ---

    async def ask(self) -> None:
        await super().ask()
        kubeconfig = self.folder / "k8s.kubeconfig"
        await self.root.run("kubeconfig", K8S, "--write", str(kubeconfig))
        self.screen.command(f'banyan kubeconfig {K8S} --write "$FOLDER"/k8s.kubeconfig; kubectl --kubeconfig … get nodes')
        code, out, err = await output([str(needs.kubectl()), "--kubeconfig", str(kubeconfig), "get", "nodes"])
        if code != 0:
            raise Unreachable(f"kubectl through the tree: {err.strip()[-400:]}")
        self.screen.block(out)

    # --- 5 ---

    async def cut(self) -> None:
        self.screen.step(5, f"the uplink of {K8S} is cut; its controller's pod and the worker's pod are killed")
        began = time.monotonic()
        await self._thread(self.member.cut_uplink)
        await self._until(f"the root shows {K8S} stale", self._is_stale)
        worker = await self._pod()
        await self._kubectl("delete", "pod", worker, "--now", "--wait=false")
        await self._kubectl("delete", "pod", "-n", SYSTEM, "-l", "app.kubernetes.io/component=controller", "--now", "--wait=false")
        self.screen.bad(f"{K8S} is cut off; {worker} and the controller are killed")
        killed = time.monotonic()
        await self._until("another pod serves", lambda: self._serves_without(worker))
        answer = self._happy(await self._answered_on_site())
        seconds = time.monotonic() - killed
        fetched = await self._kubectl("logs", await self._pod(), "-c", "fetch-model")
        self.screen.good(
            f"a new pod serves after {seconds:.1f} s: {answer['label']} {answer['confidence']:.3f}, asked in the site's own network"
        )
        self.screen.say(f"its init step found the model on the node: {fetched.splitlines()[-1]}")
        await self._kubectl("rollout", "status", "deployment/banyan-edge", "-n", SYSTEM, "--timeout=60s")
        deployment = (await self._kubectl("get", "deployments", "-l", "banyan.dev/component=serve", "-o", "name")).strip()
        await self._kubectl("delete", deployment)
        await self._until("the controller makes the deployment again", self._serves)
        self.screen.good("somebody deletes the Deployment; the controller, from its own store and with no parent, makes it again")
        self.screen.say("the root says since when it does not know:")
        self.screen.block(await self.root.run("tree"))
        self._row("cut off, controller and worker killed", f"serves after {seconds:.1f} s", began)

    async def _is_stale(self) -> bool:
        return bool((await self._clusters())[K8S]["status"]["phase"] != "Ready")

    async def _serves_without(self, gone: str) -> bool:
        return await self._serves() and await self._pod() != gone

    async def _serves(self) -> bool:
        items = await self._pods()
        return any(item["type"] == "Ready" and item["status"] == "True" for item in (items[0]["status"]["conditions"] if items else []))

    async def _answered_on_site(self) -> dict[str, Any]:
        address = await self._kubectl("get", "service", "-l", "banyan.dev/component=serve", "-o", "jsonpath={.items[0].spec.clusterIP}")
        device = self._device_words(f"http://{address}:{self.port}/v2/models/emotion/infer")
        return await self._device(self.member.machine.inside(device))

    # --- 6 ---

    async def heal(self) -> None:
        self.screen.step(6, "meanwhile version 2 at the root; the link heals")
        began = time.monotonic()
        await self.root.run("model", "publish", "emotion", str(self.examples / "model-2" / "model.onnx"), "--version", "2")
        code, answer = await self.root.request("PUT", f"{APPS}/emotion", await self._changed("2"))
        if code != 200:
            raise Unreachable(f"version 2 was not taken: {answer.decode(errors='replace')}")
        await self._thread(self.member.heal_uplink)
        await self._until("version 2 is ready and the only one", self._is_new)
        await self._until("all four are Ready", self._all_ready)
        self.screen.good("version 2 came with the link, and took over when it was ready")
        pods, status = await self._pods(), await self._status()
        if len(pods) != 1 or status["ready"] != 1:
            raise Unreachable(f"the member runs {len(pods)} pods, and the root was told of {status['ready']}")
        self.screen.good("nothing runs twice: one pod in the member, one at the root")
        self.screen.block(await self.root.run("get", "applications"))
        self._row("healed", "version 2, 1 pod", began)

    async def _is_new(self) -> bool:
        return (await self._answered_on_site())["version"] == "2" and len(await self._pods()) == 1 and await self._is_ready(1, updated=True)

    # --- the end ---

    def summary(self) -> None:
        self.screen.table(
            "What happened", ["what", "result", "seconds"], [(row.what, row.result, f"{row.seconds:.1f}") for row in self.rows]
        )

    def next_commands(self) -> None:
        self.screen.say("The tree is running; Ctrl-C here stops it all. In another terminal, in this folder:")
        self.screen.command(self._settings())
        self.screen.command("banyan tree")
        self.screen.command("banyan logs emotion")
        self.screen.command('kubectl --kubeconfig "$FOLDER"/k8s.kubeconfig get pods --all-namespaces')

    # --- tools ---

    @property
    def member(self) -> Member:
        return self.testbed.members[K8S]

    def _thread(self, call: Callable[[], T]) -> "asyncio.Future[T]":
        """What blocks. It cannot be broken off, so `close` waits for it."""

        def mapped() -> T:
            try:
                return call()
            except (MachineError, CannotBuild) as error:
                raise Unreachable(str(error)) from error

        task = asyncio.ensure_future(asyncio.to_thread(mapped))
        self._threads.add(task)
        task.add_done_callback(self._threads.discard)
        return asyncio.shield(task)

    async def _kubectl(self, *words: str, stdin: str | None = None) -> str:
        """The site's own administrator, not through the tree."""
        return await self._thread(lambda: self.member.kubectl(*words, stdin=stdin))

    async def _pods(self) -> list[dict[str, Any]]:
        """Pods of the emotion application in the member that are not on their way out."""
        found = json.loads(await self._kubectl("get", "pods", "-l", "banyan.dev/component=serve", "-o", "json"))["items"]
        return [item for item in found if "deletionTimestamp" not in item["metadata"]]

    async def _pod(self) -> str:
        items = await self._pods()
        if len(items) != 1:
            raise Unreachable(f"{K8S} runs {len(items)} pods of the application, not one")
        return str(items[0]["metadata"]["name"])


def files_service() -> dict[str, Any]:
    """The controller's model files at a fixed address."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "files-by-address", "namespace": SYSTEM},
        "spec": {
            "clusterIP": FILES_ADDRESS,
            "selector": {"app.kubernetes.io/name": "banyan-edge", "app.kubernetes.io/component": "controller"},
            "ports": [{"name": "files", "port": 8444, "targetPort": "files"}],
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m e2e.kubernetes_demo", description="Play a tree with two Kubernetes clusters in it.")
    parser.add_argument("--keep", action="store_true", help="leave the tree running at the end, until Ctrl-C")
    options = parser.parse_args()
    if os.geteuid() != 0:
        print(
            "demo: this makes network namespaces, mounts and cgroups for a whole cluster: run `make demo-kubernetes` as root, on a machine"
            " of yours; `make demo` needs no rights",
            file=sys.stderr,
        )
        return 2
    folder = Path(tempfile.mkdtemp(prefix="banyan-demo-"))
    try:
        done = asyncio.run(command.play(KubernetesStory(folder, EXAMPLES, Screen()), keep=options.keep))
    except Missing as missing:
        print(f"demo: {missing}", file=sys.stderr)
        return 2
    except BanyanError as error:
        print(f"error: {error}\nNothing of the demo runs any more. Its data and logs are in {folder}", file=sys.stderr)
        return 1
    shutil.rmtree(folder, ignore_errors=True)
    return 0 if done else 130


if __name__ == "__main__":
    sys.exit(main())
