"""Disks that are full, lost or copied, at the leaf, the region and the root."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.faults.cargo import Cargo
from e2e.faults.exact import Before, instances, until_exact
from e2e.faults.ground import Ground, grounded, phases
from e2e.support import APPS, until

pytestmark = [pytest.mark.needs("root"), pytest.mark.exact]

CARGO = 16  # MiB of a model on its way
DISK = 160  # MiB for each machine's data: five such models and what there is beside
FULL = (503, 507)


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """Each data folder is a disk of its own."""
    mounted: list[Path] = []

    def mount(folder: Path) -> dict[str, str]:
        folder.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}m", "tmpfs", str(folder)], check=True)
        mounted.append(folder)
        return {}

    try:
        with grounded(tmp_path_factory.mktemp("faults"), mount) as ground:
            yield ground
    finally:
        for folder in mounted:
            subprocess.run(["umount", "-l", str(folder)], check=False)


def fill(folder: Path) -> Path:
    """Take what room there is."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return ballast


@pytest.mark.parametrize("who", ["root", "region-a", "edge-1"])
def test_a_disk_is_full(ground: Ground, before: Before, cargo: Cargo, who: str) -> None:
    """What runs runs on, what cannot be kept is refused or waits, and nobody acknowledges what he does not hold."""
    site = next(one for one in ground.machines if one.name == who)
    cargo.send(may_arrive=who == "region-a")  # what the region has no room for, the edge asks the root for, by way of the region
    ballast = fill(site.folder)
    wanted = []
    for number in range(40):
        document = ground.resting(f"late-{number}", 1, clusterName="edge-1")
        document["metadata"]["annotations"] = {"ballast": "x" * 100_000}
        code, answer = ground.root.ask("POST", APPS, document)
        if code != 201:
            assert code in FULL, answer
            break
        wanted.append(f"late-{number}")
    assert who != "root" or len(wanted) < 40, "the root's disk was not full"
    assert before.instances <= {one for each in ground.machines for one in instances(each)}
    ballast.unlink()
    until_exact(before)
    assert set(wanted) <= set(ground.root.names())
    for name in wanted:
        ground.delete(ground.root, name)
    until_exact(before.less(*wanted))


def test_the_roots_disk_is_lost_and_an_older_backup_takes_its_place(ground: Ground, before: Before, cargo: Cargo, tmp_path: Path) -> None:
    """Nothing in the field is taken back; what the root does not know is shown until a person decides: here for the field."""
    root = ground.root
    cargo.send(again=True)
    passphrase = tmp_path / "passphrase"
    passphrase.write_text("correct horse battery staple\n")
    root.banyan("backup", str(tmp_path / "root.backup"), "--passphrase-file", str(passphrase))
    ground.create(root, "newer", 2, clusterSelector={"matchLabels": {"tier": "edge"}})
    ground.until_runs(root, "newer", 2)
    held = {one for site in ground.machines for one in instances(site)}
    root.power_off()
    for path in root.folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    root.banyan("restore", str(tmp_path / "root.backup"), "--passphrase-file", str(passphrase))
    root.run()
    until("all are linked", lambda: set(phases(root).values()) == {"Ready"})
    cargo.publish()
    until("the root shows the conflict", lambda: root.clusters()["region-a"]["facts"].get("conflicts", 0) >= 1)
    assert {one for site in ground.machines for one in instances(site)} == held, "the field was rolled back"
    root.banyan("cluster", "conflicts", "region-a", "--keep", "root")
    until_exact(before.less("newer"))


def test_a_copied_data_folder_is_held_and_both_are_told(ground: Ground, before: Before, cargo: Cargo) -> None:
    """What the first one runs is not touched by the second. Once the second is gone the first starts anew, and is believed again."""
    edge = ground.edges[0]
    cargo.send()
    copy = ground.fabric.namespace("copy")
    twin = ground.machine("twin", copy)
    ground.lay(twin)
    del ground.tree.sites["twin"]  # it is no machine of the tree: nobody counts it
    for name in ("identity", "store.db", "store.db-wal", "store.lock", "banyan.toml", "admin.kubeconfig"):
        source = edge.folder / name
        if source.is_dir():
            shutil.copytree(source, twin.folder / name)
        elif source.exists():
            shutil.copy2(source, twin.folder / name)
    try:
        twin.launch("run", "--data", str(twin.folder))
        until("the copy is held", lambda: phases(ground.region)[edge.name] == "Held")
        until("both are told", lambda: all("held" in each.log(500).lower() for each in (edge, twin)))
    finally:
        twin.destroy()
    before.overlook()  # what the copy's own machine started
    edge.kill()
    edge.run()
    until_exact(before)
