"""A large model that is on its way while a fault is played: the rest goes on where it was, whole and verified.

The link below the root is slow meanwhile, so that the fault meets it under way; `Cargo.let_go` is called once the fault is over. What
left the root for it is counted on the cable itself, in bytes of TCP payload: what was sent twice counts twice.
"""

import hashlib
import os
import secrets
from contextlib import suppress
from pathlib import Path

from e2e.faults.exact import instances
from e2e.faults.ground import Ground, Machine
from e2e.support import APPS, EMOTION, model_application, until

MEBIBYTE = 1 << 20
RATE, QUEUE = "8mbit", 64 * 1024
BEGUN = 2 * MEBIBYTE
MOST = 1.05  # of its size may leave the root, where no more is lost than what was on the wire
CHUNK = 8 * MEBIBYTE
SLOWEST = 2 * MEBIBYTE  # a second, on the busiest machine: each packet is carried by Python


class Cargo:
    """One model for edge-1. ``size``: bytes of its larger file, which is random."""

    def __init__(self, ground: Ground, folder: Path, size: int) -> None:
        self.ground = ground
        self.name = f"cargo-{secrets.token_hex(3)}"
        self._size = size
        self._ballast = folder / "ballast.bin"
        self._digest = ""
        self._sent = 0
        self._held = False
        self._may_arrive = False
        self.ratio = 0.0
        """How much left the root for it, by its size; 0 until it has come."""

    def send(self, *, may_arrive: bool = False, again: bool = False) -> None:
        """Returns once it is under way on both hops, and has long to go: now the fault begins. ``may_arrive``: by another way,
        before its end. ``again``: it will be published once more."""
        self._may_arrive = may_arrive
        digest = hashlib.sha256()
        with self._ballast.open("wb") as file:
            for start in range(0, self._size, CHUNK):
                data = os.urandom(min(CHUNK, self._size - start))
                digest.update(data)
                file.write(data)
        self._digest = digest.hexdigest()
        root = self.ground.root
        self.publish()
        if not again:
            self._ballast.unlink()
        self.ground.links["region-a"].shape(RATE, QUEUE)
        self._held = True
        self._sent = self.ground.cable.payload
        document = model_application(self.name, clusterName="edge-1")
        document["spec"]["components"][0]["model"]["name"] = self.name
        code, answer = root.ask("POST", APPS, document)
        assert code == 201, answer
        self.ground.cargo = self
        edge = self.ground.edges[0]
        until("a model is on its way", lambda: self.arrived(edge) >= min(BEGUN, self._size // 4))
        assert self.arrived(edge) < self._size, "the model had arrived before there was a fault"
        self.ground.figures.begin()

    def publish(self) -> None:
        """What a person does once more where the root has lost its files: a backup has none (`banyan backup --help`)."""
        model = str(EMOTION / "model-1" / "model.onnx")
        words = ("model", "publish", self.name, model, str(self._ballast), "--version", "1")
        self.ground.root.banyan(*words, seconds=60 + self._size / SLOWEST)

    def arrived(self, site: Machine) -> int:
        """Bytes of it at a site."""
        blobs = site.folder / "blobs"
        found = 0
        for path in (blobs / "partial" / self._digest, blobs / "sha256" / self._digest[:2] / self._digest):  # in the order of its life
            with suppress(FileNotFoundError):
                found = max(found, path.stat().st_size)
        return found

    def let_go(self) -> float:
        """The fault is over: the rest may come as fast as it can. How many seconds that may take."""
        if self._held:
            self._held = False
            on_its_way = self.arrived(self.ground.edges[0]) < self._size
            assert on_its_way or self._may_arrive, "the model had arrived before the fault was over"
            self.ground.links["region-a"].unshape()
        return 0.0 if self.ratio else self._size / SLOWEST

    def check(self) -> None:
        """It is there, as it was published, at each hop, and nothing of it lies around half."""
        if self.ratio:
            return
        self.ratio = (self.ground.cable.payload - self._sent) / self._size
        print(f"\nmodel of {self._size / MEBIBYTE:g} MiB: {self.ratio:.3f} of its size left the root")
        self.ground.figures.note(f"of a model of {self._size / MEBIBYTE:g} MiB left the root", f"{self.ratio:.3f}")
        for site in (self.ground.edges[0],) if self._may_arrive else (self.ground.region, self.ground.edges[0]):
            (found,) = (path for path in (site.folder / "blobs").rglob("*") if self._digest in path.name and path.parent.name != "chunks")
            digest = hashlib.sha256()
            with found.open("rb") as file:
                while data := file.read(CHUNK):
                    digest.update(data)
            assert digest.hexdigest() == self._digest, f"{site.name} has a wrong file"

    def end(self) -> None:
        """Nobody wants it any more."""
        if self.ground.cargo is not self:
            return
        self.ground.cargo = None
        if self._held:
            self.ground.links["region-a"].unshape()
        root = self.ground.root
        root.ask("DELETE", f"{APPS}/{self.name}")
        root.ask("DELETE", f"{APPS.rpartition('/')[0]}/models/{self.name}")
        until("nobody serves it any more", lambda: all(one.application != self.name for one in instances(self.ground.edges[0])))
