"""The tree that faults are played on: root → region-a → edge-1, edge-2, each a machine with a network of its own, something running.

`steady` comes from the root and `local` from the region; each of their starts is one line in a file that outlives everybody, so that
whoever was started twice, or stopped and started again, is found afterwards by `exact`.
"""

import contextlib
import functools
import shutil
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster_controller.identity import load
from e2e.cable import Cable
from e2e.faults.figures import Figures
from e2e.netns import Fabric, Link, Namespace, weaving
from e2e.placed import PlacedSite
from e2e.support import APPS, Tree, application, growing, until

if TYPE_CHECKING:
    from e2e.faults.cargo import Cargo

SITE_BIND = "127.0.1.1"  # the loopback of each machine is its own
CAPACITY = "cpu=16,memory=16Gi"
MODELS = "2500Mi"  # on each disk: the largest that is sent, and the one before
STEADY, LOCAL = "steady", "local"


class Machine(PlacedSite):
    """A site on the ground: knows its uid, and where its starts are noted."""

    @functools.cached_property
    def uid(self) -> str:
        return load(self.folder / "identity").uid

    @property
    def parent_uid(self) -> str:
        return load(self.folder / "identity").parent_uid

    def power_off(self) -> None:
        """Everything on the machine is gone at once."""
        self.destroy()

    def names(self) -> list[str]:
        """Of the Applications that are written here."""
        return sorted(item["metadata"]["name"] for item in self.get(APPS)["items"])


class Ground:
    def __init__(self, fabric: Fabric, tree: Tree, environment: Callable[[Path], dict[str, str]]) -> None:
        self._environment = environment
        self.fabric = fabric
        self.tree = tree
        self.links: dict[str, Link] = {}
        """By the name of the site at the lower end."""
        self.cable: Cable
        """Between root and region."""
        self.cargo: Cargo | None = None
        """A model that is on its way."""
        self.figures = Figures("")
        """Of the test that runs."""
        self.starts = tree.folder / "starts"
        self.starts.touch()
        self.root = self.machine("root")
        self.region = self.machine("region-a")
        self.edges = [self.machine(name) for name in ("edge-1", "edge-2")]

    # --- machines ---

    def machine(self, name: str, space: Namespace | None = None, **environment: str) -> Machine:
        folder = self.tree.folder / name
        given = (
            {"BANYAN_SITE_BIND": SITE_BIND, "BANYAN_CAPACITY": CAPACITY, "BANYAN_BLOB_BUDGET": MODELS}
            | self._environment(folder)
            | environment
        )
        site = Machine(folder, given, space or self.fabric.namespace(name))
        self.tree.sites[name] = site
        return site

    @property
    def machines(self) -> list[Machine]:
        """Those that have joined."""
        return [site for site in self.tree.sites.values() if isinstance(site, Machine) and (site.folder / "identity").exists()]

    def plant(self) -> None:
        """Everybody joins and runs, and finds a way to everybody: a network goes on when the controller beside it does not."""
        link, self.cable = self.fabric.cable(self.root.space, self.region.space)
        self.links["region-a"] = link
        self.region.space.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        listen = ("--tunnel-listen", f"{link.upper.address}:10000")
        self.root.banyan("init", "root", "--api-listen", "127.0.0.1:0", *listen, "--shim", "none")
        self.root.run()
        self.region.join(self.root.token(), "--tunnel-listen", f"{link.lower.address}:10000", "--shim", "none")
        self.region.wait()
        for edge in self.edges:
            self.add(edge)
        self.until_ready()

    def lay(self, site: Machine) -> Link:
        """A link between the region and a machine that is new; what is asked of the region, it asks at the region's one address."""
        link = self.links[site.name] = self.fabric.link(self.region.space, site.space)
        site.space.default_route(link.upper.address)
        self.root.space.run("ip", "route", "replace", f"{link.lower.address}/32", "via", self.links["region-a"].lower.address)
        return link

    def add(self, edge: Machine) -> None:
        """It joins below the region and runs."""
        if edge.name not in self.links:
            self.lay(edge)
        edge.join(self.region.token(), "--tunnel-listen", "", "--labels", f"tier=edge,site={edge.name}")
        edge.wait()

    def until_ready(self) -> None:
        count = len(self.machines)
        until("all are Ready", lambda: [one["phase"] for one in self.root.clusters().values()] == ["Ready"] * count)

    # --- what runs ---

    def resting(self, name: str, replicas: int = 1, word: str = "", **placement: Any) -> dict[str, Any]:
        """An Application whose instances note their start and then rest; ``word`` is what changes when it is changed."""
        script = f"echo $BANYAN_APPLICATION/$BANYAN_INSTANCE >> {self.starts}; exec /bin/sleep 1000000"
        component: dict[str, Any] = {
            "name": "rest", "command": ["/bin/sh", "-c", script], "replicas": replicas,
            "resources": {"cpu": "10m", "memory": "8Mi"},
        }  # fmt: skip
        if word:
            component["env"] = [{"name": "WORD", "value": word}]
        return application(name, [component], **placement)

    def create(self, site: Machine, name: str, replicas: int = 1, **placement: Any) -> None:
        code, answer = site.ask("POST", APPS, self.resting(name, replicas, **placement))
        assert code == 201, answer

    def change(self, site: Machine, name: str, **spec: Any) -> None:
        """A merge patch of its only component: ``replicas``, or ``word``."""
        component = self.resting(name, **spec)["spec"]["components"]
        code, answer = site.ask("PATCH", f"{APPS}/{name}", {"spec": {"components": component}}, "application/merge-patch+json")
        assert code == 200, answer

    def delete(self, site: Machine, name: str) -> None:
        code, answer = site.ask("DELETE", f"{APPS}/{name}")
        assert code == 200, answer

    def until_runs(self, site: Machine, name: str, count: int) -> None:
        until(f"{count} of {name} are ready at {site.name}", lambda: site.status(name).get("ready") == count)

    def sow(self) -> None:
        self.create(self.root, STEADY, 4, clusterSelector={"matchLabels": {"tier": "edge"}})
        self.create(self.region, LOCAL, 2, clusterSelector={"matchLabels": {"tier": "edge"}})
        self.until_runs(self.root, STEADY, 4)
        self.until_runs(self.region, LOCAL, 2)

    def log(self) -> str:
        """What everybody said last, for a test that failed."""
        return "\n".join(f"--- {site.name}\n{site.log(15)}" for site in self.machines)


def phases(site: Machine) -> dict[str, str]:
    return {name: status["phase"] for name, status in site.clusters().items()}


def metric(site: Machine, name: str) -> float:
    """What the controller says of itself, all labels together."""
    code, text = site.ask("GET", "/metrics")
    assert code == 200, text
    lines = [line for line in text.decode().splitlines() if line.startswith((f"{name} ", f"{name}{{"))]
    assert lines, f"{site.name} says nothing of {name}"
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def events(site: Machine, name: str, since: float, *words: str) -> list[float]:
    """When the site logged an event of that name, with these words, by the wall clock of all of them."""
    found = []
    for line in site.log(100_000).splitlines():
        time_of, _, rest = line.partition(" ")
        if f" {name} " in rest and all(word in rest for word in words):
            at = datetime.fromisoformat(time_of).timestamp()
            if at >= since:
                found.append(at)
    return found


@contextlib.contextmanager
def grounded(folder: Path, environment: Callable[[Path], dict[str, str]] = lambda folder: {}) -> Iterator[Ground]:
    """``environment``: of the controller in a data folder."""
    with weaving() as fabric, growing(folder) as tree:
        ground = Ground(fabric, tree, environment)
        try:
            ground.plant()
            ground.sow()
            yield ground
        except BaseException:
            print(ground.log())
            raise
    for site in ground.machines:  # with gibibytes of models
        shutil.rmtree(site.folder, ignore_errors=True)
