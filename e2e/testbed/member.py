"""Members: whole clusters, as sites have them, and the ways in which sites come to grief.

A member is a machine (`machine.py`) and its components (`components.py`). Nothing restarts what ends: a test that stops something wants it
stopped. What a member keeps over `reboot_node` is its disk.
"""

import json
import os
import signal
import ssl
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from http.client import HTTPException, HTTPSConnection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cluster_shim.kubernetes.rights import OWNER, OWNER_NAMESPACE
from e2e.testbed import build, components, host, images, registry
from e2e.testbed.components import APISERVER, CONTAINERD, CONTROLLERS, DATASTORE, KUBELET, KWOK, MASTERS, PROXY, SCHEDULER, SERVICE_ADDRESS
from e2e.testbed.machine import API_PORT, LAN_ADDRESS, Machine, MachineError
from e2e.testbed.pki import Authority, write_kubeconfig
from tools import needs

READY_SECONDS = 300.0  # on a machine that does much else; alone it takes a thirtieth, and what ends instead is told at once
POLL_SECONDS = 0.1
# The way out is cut where it is known: until kube-proxy has translated it, what is for a Service looks as if it left through the uplink.
CUT = """
table inet cut {
  chain in { type filter hook input priority -300; iifname "uplink" drop; }
  chain out { type filter hook postrouting priority -300; oifname "uplink" drop; }
  chain through { type filter hook forward priority -300; iifname "uplink" drop; oifname "uplink" drop; }
}
"""


@dataclass(frozen=True)
class Shape:
    """What a member is made of. Use one of the four makers, or say it part by part."""

    datastore: str = "etcd"
    """`etcd`, or `kine` as in k3s."""
    controllers: bool = True
    """kube-controller-manager and kube-scheduler. Without them objects can be written and watched, but no pod starts, nothing is collected,
    and the roles `view`, `edit` and `admin` are empty, for a controller fills them."""
    kwok_nodes: int = 0
    """Nodes that kwok plays; pods there are Running at once and run nothing."""
    kwok_pods: int = 110
    """How many pods each of those takes."""
    node: bool = False
    """A real node: containerd, kubelet, CNI and kube-proxy, in a site of its own behind a translating router."""
    version: str = field(default_factory=build.default_version)
    """Of Kubernetes; what `make testbed` or `make testbed-compat` has built."""
    reported: str = ""
    """What API server and nodes say that their version is; it may differ behind the patch number. Empty: the plain truth."""
    apiserver: tuple[str, ...] = ()
    """More arguments for the API server."""

    @classmethod
    def control_plane(cls, *, controllers: bool = False) -> Self:
        """etcd and an API server: 4 seconds, 310 MB."""
        return cls(controllers=controllers)

    @classmethod
    def kwok(cls, nodes: int = 3, pods: int = 110) -> Self:
        return cls(kwok_nodes=nodes, kwok_pods=pods)

    @classmethod
    def k3s(cls, nodes: int = 1, *, node: bool = False) -> Self:
        """An API server on SQLite, which is what k3s is made of, under a version as k3s gives it; not the k3s program."""
        version = build.default_version()
        reported = version if "+k3s" in version else f"{version}+k3s1"
        return cls(datastore="kine", kwok_nodes=0 if node else nodes, node=node, reported=reported)

    @classmethod
    def whole(cls) -> Self:
        """Pods really run."""
        return cls(node=True)


class Member:
    """One cluster. Started by `Testbed.start`, gone with it."""

    def __init__(self, name: str, shape: Shape) -> None:
        self.name = name
        self.shape = shape
        self.machine = Machine(name, node=shape.node)
        self.folder = self.machine.folder
        self.started_s = 0.0
        """How long it took until everything was Ready, in seconds."""
        inside = "127.0.0.1" if shape.node else self.machine.address
        self.api_url = f"https://{self.machine.address}:{API_PORT}"
        """Where tests reach the API server, from this host; a way in that no site has."""
        self.site_url = f"https://{LAN_ADDRESS if shape.node else self.machine.address}:{API_PORT}"
        """Where the API server is for what runs at the site."""
        self.audit_log = self.folder / "audit.log"
        """One JSON document per line, for every request: who, what, which code."""
        self.authority = Authority(self.folder / "pki")
        self._place = components.Place(
            name, self.folder, inside, f"https://{inside}:{API_PORT}", self.authority, shape.version, shape.reported, self.machine.cgroup
        )
        self._powered_on = ""
        self._issue_certificates()
        self._commands = self._command_lines()
        self.kubeconfig = self.user("admin", [MASTERS])
        """An administrator's, for use from this host."""
        self.site_kubeconfig = self.user("site-admin", [MASTERS], site=True)
        """An administrator's, for use at the site: `run_at_site`, `machine.inside`."""

    @property
    def wan_host(self) -> str:
        """The address at which a whole member reaches this host: what its parent must listen on and announce."""
        return registry.WIDE_HOST

    # --- people ---

    def user(self, name: str, groups: Sequence[str] = (), *, valid: timedelta = timedelta(days=30), site: bool = False) -> Path:
        """A kubeconfig for a person by client certificate. Negative `valid`: one that has expired. `site`: for use at the site."""
        certificate, key = self.authority.issue(f"user-{name}", name, groups, valid=valid)
        url = self.site_url if site else self.api_url
        return write_kubeconfig(self.folder / f"{name}.kubeconfig", url, self.authority.certificate, certificate, key, self.name)

    def kubectl(
        self, *arguments: str, stdin: str | None = None, check: bool = True, seconds: float = 60.0, kubeconfig: Path | None = None
    ) -> str:
        """An unmodified kubectl against this member, from this host, not through the tree; what it printed."""
        argv = [str(needs.kubectl()), "--kubeconfig", str(kubeconfig or self.kubeconfig), *arguments]
        environment = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")} | {"HOME": str(self.folder)}
        done = subprocess.run(argv, capture_output=True, text=True, input=stdin, timeout=seconds, check=False, env=environment)
        if check and done.returncode != 0:
            raise MachineError(f"kubectl {' '.join(arguments)} on {self.name}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout if check else done.stdout + done.stderr

    def request(self, method: str, path: str, body: Any = None, seconds: float = 10.0) -> tuple[int, Any]:
        """One request to the API server as administrator: the code, and the document or text."""
        context = ssl.create_default_context(cafile=str(self.authority.certificate))
        context.load_cert_chain(self.authority.folder / "user-admin.crt", self.authority.folder / "user-admin.key")
        connection = HTTPSConnection(self.machine.address, API_PORT, timeout=seconds, context=context)
        try:
            connection.request(method, path, None if body is None else json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        return answer.status, json.loads(text) if text[:1] == b"{" else text.decode(errors="replace")

    def disown(self) -> None:
        """Whichever controller managed this cluster is gone for good: as a person says who knows that (docs/how-to/join-kubernetes.md)."""
        self.kubectl("delete", "lease", OWNER, "-n", OWNER_NAMESPACE, "--ignore-not-found")

    # --- components ---

    @property
    def components(self) -> list[str]:
        """Names for `stop`, `start`, `pause`, `resume` and `log`, in the order in which they start."""
        return list(self._commands)

    def start(self, *names: str) -> None:
        for name in names:
            self.machine.start(name, self._commands[name]())

    def stop(self, *names: str) -> None:
        """SIGTERM, and SIGKILL for what does not end by itself."""
        for name in names:
            self.machine.stop(self._known(name))

    def kill(self, *names: str) -> None:
        """SIGKILL; returns when it is dead."""
        for name in names:
            self.machine.signal(self._known(name), signal.SIGKILL)
            wait_for(f"{name} is dead", partial(self._is_dead, name), 10)

    def _is_dead(self, name: str) -> bool:
        return not self.machine.runs(name)

    def pause(self, *names: str) -> None:
        """SIGSTOP: it hangs, and its connections stay open."""
        for name in names:
            self.machine.signal(self._known(name), signal.SIGSTOP)

    def resume(self, *names: str) -> None:
        for name in names:
            self.machine.signal(self._known(name), signal.SIGCONT)

    def restart_apiserver(self) -> None:
        """In order, and wait until it is ready again."""
        self.stop(APISERVER)
        self.start(APISERVER)
        self.wait_api()

    def log(self, name: str, lines: int = 30) -> str:
        return self.machine.log(name, lines)

    def run_at_site(self, name: str, argv: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """Start a program at the site, as one more component: it dies with the machine, and a reboot does not bring it back."""
        if name in self._commands:
            raise ValueError(f"{name} is a component of the member itself")
        self.machine.start(name, argv, environment)

    def memory(self) -> dict[str, int]:
        """Resident bytes of each component that runs."""
        found = {}
        for name in self.machine.running():
            status = Path(f"/proc/{self.machine.host_pid(name)}/status").read_text(encoding="utf-8")
            found[name] = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS:"))
        return found

    # --- the site ---

    def cut_uplink(self) -> None:
        """Everything that crosses the uplink vanishes without a word, both ways, as on a dead line. Needs a whole member."""
        self._need_node("cut_uplink")
        self.heal_uplink()
        self.machine.run(["nft", "-f", "-"], stdin=CUT)

    def heal_uplink(self) -> None:
        self._need_node("heal_uplink")
        self.machine.run(["nft", "-f", "-"], stdin="table inet cut { }\ndelete table inet cut\n")

    def limit_uplink(self, bits_per_second: int) -> None:
        """Slow what the site sends; 0 lifts it."""
        self._need_node("limit_uplink")
        self.machine.run(["sh", "-c", "tc qdisc del dev uplink root 2>/dev/null || true"])
        if bits_per_second:
            rate = ["rate", f"{bits_per_second}bit", "burst", "16kb", "latency", "200ms"]
            self.machine.run(["tc", "qdisc", "add", "dev", "uplink", "root", "tbf", *rate])

    def power_off(self) -> None:
        """Cut the power: every process, container and connection of the member is gone at once. Its disk stays."""
        self.machine.power_off()

    def power_on(self) -> None:
        """Start the machine and all components; wait until the member is Ready. An uplink that was cut is whole again."""
        started = time.monotonic()
        self._powered_on = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self.machine.power_on()
        first = [name for name in self.components if name in {DATASTORE, CONTAINERD, APISERVER}]
        self.start(*first)
        if self.shape.node:
            self._fill_node()
        self.wait_api()
        self.start(*[name for name in self.components if name not in first])
        self.wait_ready()
        self.started_s = time.monotonic() - started

    def reboot_node(self) -> None:
        """A power cut and a new start of the whole site."""
        self.power_off()
        self.power_on()

    def load_image(self, tar: Path) -> None:
        """Give the node an image (OCI or docker-archive). It keeps it over reboots."""
        self._need_node("load_image")
        self.machine.run(
            ["ctr", "--address", components.SOCKET, "--namespace", "k8s.io", "images", "import", str(tar.resolve())], seconds=300
        )

    def give_volume(self, name: str, size: str, storage_class: str = "") -> None:
        """A PersistentVolume on the node, for the node has no provisioner: a claim of this class, and of no more than `size`, gets it."""
        folder = self._volume(name)
        self.machine.run(["mkdir", "-p", folder])
        here = {"key": "kubernetes.io/hostname", "operator": "In", "values": [self.name]}
        spec = {
            "capacity": {"storage": size},
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": storage_class,
            "persistentVolumeReclaimPolicy": "Retain",
            "local": {"path": folder},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}},
        }
        volume = {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec}
        self.kubectl("apply", "-f", "-", stdin=json.dumps(volume))

    def take_volume(self, name: str) -> None:
        self.kubectl("delete", "pv", name, "--wait=false")
        self.machine.run(["rm", "-rf", self._volume(name)])

    def _volume(self, name: str) -> str:
        return f"/var/lib/banyan-volumes/{self.name}/{name}"

    def destroy(self) -> None:
        self.machine.destroy()

    # --- readiness ---

    def wait_api(self) -> None:
        self._wait("the API server is ready", lambda: self.request("GET", "/readyz")[0] == 200)

    def wait_ready(self) -> None:
        """The API server, the default service account (without which no pod can be made) and every node."""
        self.wait_api()
        if self.shape.controllers:
            path = "/api/v1/namespaces/default/serviceaccounts/default"
            self._wait("the controllers work", lambda: self.request("GET", path)[0] == 200)
        for number in range(self.shape.kwok_nodes):
            node = components.kwok_node(number, self.shape.reported or self.shape.version, self.shape.kwok_pods)
            code, answer = self.request("POST", "/api/v1/nodes", node)
            if code not in {201, 409}:
                raise MachineError(f"{self.name} refuses node {number}: {code} {answer}")
        wanted = self.shape.kwok_nodes + self.shape.node
        if wanted:
            self._wait("all nodes are Ready", lambda: len(self.ready_nodes()) >= wanted)

    def ready_nodes(self) -> list[str]:
        """Names of the nodes that are Ready now."""
        code, answer = self.request("GET", "/api/v1/nodes")
        return [node["metadata"]["name"] for node in answer["items"] if self._is_ready(node)] if code == 200 else []

    def _is_ready(self, node: dict[str, Any]) -> bool:
        conditions = {condition["type"]: condition for condition in node["status"].get("conditions", [])}
        if conditions.get("Ready", {}).get("status") != "True":
            return False
        # After a power cut the API goes on showing the state from before, until the kubelet has spoken again.
        return node["metadata"]["name"] != self.name or str(conditions["Ready"]["lastHeartbeatTime"]) > self._powered_on

    def _wait(self, what: str, check: Callable[[], object]) -> None:
        def checked() -> object:
            running = self.machine.running()
            for name in self.components:
                if name not in running and (code := self.machine.exit_code(name)) is not None:
                    raise Ended(f"{name} of {self.name} ended with {code}:\n{self.log(name, 12)}")
            return check()

        try:
            wait_for(f"{self.name}: {what}", checked, READY_SECONDS)
        except Late as late:
            logs = "\n".join(f"--- {name}\n{self.log(name, 8)}" for name in self.components)
            raise MachineError(f"{late}\n{logs}") from None

    # --- what it is made of ---

    def _issue_certificates(self) -> None:
        self.authority.service_account_keys()
        names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"]
        addresses = ["127.0.0.1", self.machine.address, LAN_ADDRESS, SERVICE_ADDRESS]
        self.authority.issue("apiserver", "kube-apiserver", hosts=[*names, *addresses])
        self.authority.issue("apiserver-kubelet", "kube-apiserver-kubelet", [MASTERS])
        if self.shape.node:
            self.authority.issue("kubelet-server", f"system:node:{self.name}", ["system:nodes"], [self.name, LAN_ADDRESS])

    def _command_lines(self) -> dict[str, Callable[[], list[str]]]:
        """By name, in the order in which they start."""
        place, shape = self._place, self.shape
        bind = "0.0.0.0" if shape.node else place.address
        commands: dict[str, Callable[[], list[str]]] = {
            DATASTORE: lambda: components.etcd(place) if shape.datastore == "etcd" else components.kine(place),
        }
        if shape.node:
            commands[CONTAINERD] = lambda: components.containerd(place)
        commands[APISERVER] = lambda: components.apiserver(place, bind, self.audit_log, shape.apiserver)
        if shape.controllers:
            commands[CONTROLLERS] = lambda: components.controller_manager(place)
            commands[SCHEDULER] = lambda: components.scheduler(place)
        if shape.kwok_nodes:
            commands[KWOK] = lambda: components.kwok(place)
        if shape.node:
            commands[KUBELET] = lambda: components.kubelet(place)
            commands[PROXY] = lambda: components.proxy(place)
        return commands

    def _fill_node(self) -> None:
        """Wait for containerd, and give it the images that every node needs, unless it has them from before."""

        def listed() -> str:
            return self.machine.run(["ctr", "--address", components.SOCKET, "--namespace", "k8s.io", "images", "list", "--quiet"])

        self._wait("containerd answers", lambda: listed() is not None)
        if images.PAUSE not in listed():
            for tar in images.ensure():
                self.load_image(tar)

    def _known(self, name: str) -> str:
        if name not in self._commands and name not in self.machine.running():
            raise ValueError(f"{self.name} has no component {name}; it has {', '.join(self._commands)}")
        return name

    def _need_node(self, what: str) -> None:
        if not self.shape.node:
            raise ValueError(f"{what} needs a whole member (Shape.whole()); {self.name} has no node of its own")


class Testbed:
    """Members that begin and end together. Also without `with`: whatever ends this process ends them."""

    __test__ = False  # for pytest: not a class of tests, whatever its name says

    def __init__(self) -> None:
        self.members: dict[str, Member] = {}

    def start(self, name: str, shape: Shape) -> Member:
        """A member that is Ready. Raises Missing when the machine lacks something, MachineError when it does not become Ready."""
        if name in self.members:
            raise ValueError(f"there is a member {name} already")
        check(shape)
        member = self.members[name] = Member(name, shape)
        try:
            member.power_on()
        except BaseException:
            self.remove(name)
            raise
        return member

    def remove(self, name: str) -> None:
        self.members.pop(name).destroy()

    def close(self) -> None:
        for name in reversed(list(self.members)):
            self.remove(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def check(shape: Shape) -> None:
    """Raises Missing, which names what this machine lacks for such a member and how to get it."""
    if shape.node:
        host.node()
    names = [APISERVER]
    names += [CONTROLLERS, SCHEDULER] if shape.controllers else []
    names += [KUBELET, PROXY] if shape.node else []
    names += [KWOK] if shape.kwok_nodes else []
    names.append(shape.datastore)
    for name in names:
        build.find(name, shape.version)
    needs.kubectl()


class Late(AssertionError):
    """Something did not come about in time."""


class Ended(Exception):
    """A component ended while it was waited for: no use in waiting longer."""


def wait_for(what: str, check: Callable[[], object], seconds: float) -> None:
    """Poll until `check` is true. Raises Late with the last trouble; what is wrong on the way to readiness is tried again."""
    deadline = time.monotonic() + seconds
    trouble = ""
    while time.monotonic() < deadline:
        try:
            if check():
                return
            trouble = ""
        except (OSError, HTTPException, AssertionError, ValueError) as error:
            trouble = f" ({error})"
        time.sleep(POLL_SECONDS)
    raise Late(f"after {seconds:g} s it is still not so that {what}{trouble}")
