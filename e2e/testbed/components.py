"""The command lines and configuration of everything that a member is made of. Nothing is started here.

Kubernetes' own programs with the settings of an ordinary installation; where one differs, it says why.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2e.testbed import build, host, images
from e2e.testbed.machine import API_PORT, LAN_ADDRESS
from e2e.testbed.pki import Authority, write_kubeconfig

SERVICES = "10.96.0.0/16"
SERVICE_ADDRESS = "10.96.0.1"  # of the API server, inside
PODS = "10.244.0.0/24"
MASTERS = "system:masters"
APISERVER, CONTROLLERS, SCHEDULER, KUBELET, PROXY = "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy"
DATASTORE, CONTAINERD, KWOK = "datastore", "containerd", "kwok"
SOCKET = "/run/containerd/containerd.sock"
AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata"}],
}
NODE_ANNOTATION = {"kwok.x-k8s.io/node": "fake"}


@dataclass(frozen=True)
class Place:
    """Where a member's components are: what their command lines need to know."""

    name: str
    folder: Path
    address: str
    """On which the control plane listens."""
    url: str
    """Of the API server, for the member's own components."""
    authority: Authority
    version: str
    reported: str
    """What components say that their version is, as k3s' own do; "" for the plain truth."""
    cgroup: str

    def program(self, name: str) -> str:
        return str(build.find(name, self.version))

    def says_version(self) -> list[str]:
        return [f"--version=v{self.reported}"] if self.reported else []

    def config(self, name: str, document: Any) -> str:
        """Write a configuration file (JSON is YAML); its path."""
        path = self.folder / name
        path.write_text(document if isinstance(document, str) else json.dumps(document, indent=1), encoding="utf-8")
        return str(path)

    def kubeconfig(self, name: str, user: str, groups: Sequence[str] = ()) -> str:
        """A component's own identity; made once."""
        path = self.folder / f"{name}.kubeconfig"
        if not path.exists():
            certificate, key = self.authority.issue(name, user, groups)
            write_kubeconfig(path, self.url, self.authority.certificate, certificate, key, self.name)
        return str(path)

    def issued(self, name: str) -> tuple[str, str]:
        return str(self.authority.folder / f"{name}.crt"), str(self.authority.folder / f"{name}.key")


def etcd(place: Place) -> list[str]:
    clients, peers = f"http://{place.address}:2379", f"http://{place.address}:2380"
    return [
        place.program("etcd"), "--name=member", f"--data-dir={place.folder / 'etcd'}", "--log-level=warn",
        f"--listen-client-urls={clients}", f"--advertise-client-urls={clients}",
        f"--listen-peer-urls={peers}", f"--initial-advertise-peer-urls={peers}", f"--initial-cluster=member={peers}",
    ]  # fmt: skip


def kine(place: Place) -> list[str]:
    """What k3s keeps its objects in: SQLite behind etcd's protocol, with the settings k3s gives it."""
    endpoint = f"sqlite://{place.folder / 'kine.db'}?_journal=WAL&cache=shared&_busy_timeout=30000&_txlock=immediate"
    return [place.program("kine"), f"--endpoint={endpoint}", f"--listen-address={place.address}:2379", "--metrics-bind-address=0"]


def apiserver(place: Place, bind: str, audit_log: Path, extra: Sequence[str]) -> list[str]:
    certificate, key = place.issued("apiserver")
    client_certificate, client_key = place.issued("apiserver-kubelet")
    keys = place.authority.folder
    return [
        place.program(APISERVER), f"--etcd-servers=http://{place.address}:2379", f"--bind-address={bind}", f"--secure-port={API_PORT}",
        f"--advertise-address={LAN_ADDRESS}", f"--tls-cert-file={certificate}", f"--tls-private-key-file={key}",
        f"--cert-dir={place.folder}",  # the fork of k3s keeps the certificate of its connection to itself there
        f"--client-ca-file={place.authority.certificate}", f"--service-account-key-file={keys / 'service-accounts.pub'}",
        f"--service-account-signing-key-file={keys / 'service-accounts.key'}", "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-cluster-ip-range={SERVICES}", "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true", "--kubelet-preferred-address-types=InternalIP", f"--kubelet-client-certificate={client_certificate}",
        f"--kubelet-client-key={client_key}", f"--kubelet-certificate-authority={place.authority.certificate}",
        f"--audit-policy-file={place.config('audit-policy.yaml', AUDIT_POLICY)}", f"--audit-log-path={audit_log}",
        "--audit-log-maxsize=256", "--audit-log-maxbackup=2", "--profiling=false", *place.says_version(), *extra,
    ]  # fmt: skip


def controller_manager(place: Place) -> list[str]:
    kubeconfig = place.kubeconfig(CONTROLLERS, "system:kube-controller-manager")
    keys = place.authority.folder
    return [
        place.program(CONTROLLERS), f"--kubeconfig={kubeconfig}", f"--root-ca-file={place.authority.certificate}",
        f"--service-account-private-key-file={keys / 'service-accounts.key'}", "--use-service-account-credentials=true",
        f"--cluster-signing-cert-file={place.authority.certificate}", f"--cluster-signing-key-file={keys / 'ca.key'}",
        "--leader-elect=false", "--secure-port=0", "--profiling=false",
    ]  # fmt: skip


def scheduler(place: Place) -> list[str]:
    kubeconfig = place.kubeconfig(SCHEDULER, "system:kube-scheduler")
    return [place.program(SCHEDULER), f"--kubeconfig={kubeconfig}", "--leader-elect=false", "--secure-port=0", "--profiling=false"]


def kwok(place: Place) -> list[str]:
    """Plays the kubelets of nodes that are annotated; they never run anything."""
    kubeconfig = place.kubeconfig("kwok", "kwok", [MASTERS])
    (selector,) = (f"{key}={value}" for key, value in NODE_ANNOTATION.items())
    return [
        place.program("kwok"), f"--kubeconfig={kubeconfig}", "--manage-all-nodes=false",
        f"--manage-nodes-with-annotation-selector={selector}",
        "--cidr=10.250.0.0/16", f"--node-ip={LAN_ADDRESS}", "--node-lease-duration-seconds=40",
        f"--config={Path(__file__).parent / 'kwok.yaml'}",
    ]  # fmt: skip


def kwok_node(number: int, version: str, pods: int) -> dict[str, Any]:
    capacity = {"cpu": "64", "memory": "256Gi", "ephemeral-storage": "1Ti", "pods": str(pods)}
    name = f"kwok-{number}"
    labels = {
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64",
        "type": "kwok",
    }
    info = {"architecture": "amd64", "operatingSystem": "linux", "kubeletVersion": f"v{version}"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels, "annotations": NODE_ANNOTATION},
        "status": {"allocatable": capacity, "capacity": capacity, "nodeInfo": info, "phase": "Running"},
    }


def containerd(place: Place) -> list[str]:
    config = f"""version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
  address = "{SOCKET}"
[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "docker.io/{images.PAUSE}"
  # A machine without CAP_SYS_RESOURCE, as many CI machines are, may not lower an oom_score_adj: without this no sandbox starts there.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{host.cni_plugins()}"
    conf_dir = "{place.folder / "cni"}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
"""  # noqa: E501
    network = {
        "cniVersion": "0.4.0",
        "name": "testbed",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": True,
                "ipMasq": True,
                "hairpinMode": True,
                # Addresses are given anew after a reboot, so their record is where a reboot clears it.
                "ipam": {"type": "host-local", "ranges": [[{"subnet": PODS}]], "routes": [{"dst": "0.0.0.0/0"}], "dataDir": "/run/cni"},
            },
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }
    (place.folder / "cni").mkdir(exist_ok=True)
    place.config("cni/10-testbed.conflist", network)
    return [host.require("containerd"), "--config", place.config("containerd.toml", config), "--log-level", "warn"]


def kubelet(place: Place) -> list[str]:
    certificate, key = place.issued("kubelet-server")
    config = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(place.authority.certificate)},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": certificate,
        "tlsPrivateKeyFile": key,
        "containerRuntimeEndpoint": f"unix://{SOCKET}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{place.cgroup}",  # so that what is left of a member can be told from everything else
        "failCgroupV1": False,
        "failSwapOn": False,
        "localStorageCapacityIsolation": False,
        "resolvConf": place.config("resolv.conf", "nameserver 127.0.0.1\n"),
        "clusterDNS": ["10.96.0.10"],  # nothing answers there: the testbed has no DNS; without it every pod gets a warning
        "clusterDomain": "cluster.local",
        # A test machine's disk may be nearly full; that must not throw the test's pods out.
        "evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%", "imagefs.available": "0%"},
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
    }
    return [
        place.program(KUBELET), f"--config={place.config('kubelet.yaml', config)}",
        f"--kubeconfig={place.kubeconfig(KUBELET, f'system:node:{place.name}', ['system:nodes'])}",
        f"--hostname-override={place.name}", f"--node-ip={LAN_ADDRESS}", *place.says_version(),
    ]  # fmt: skip


def proxy(place: Place) -> list[str]:
    config = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clusterCIDR": PODS,
        "hostnameOverride": place.name,
        "clientConnection": {"kubeconfig": place.kubeconfig(PROXY, "system:kube-proxy")},
        # These are of the whole machine, and a network namespace may not set them.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    }
    return [place.program(PROXY), f"--config={place.config('kube-proxy.yaml', config)}"]
