"""A controller that runs at the site of a whole member, beside its cluster and behind its router, as somebody would run it there."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cluster_controller.identity import load
from e2e.support import Site, until
from e2e.testbed import Member
from e2e.testbed.components import SOCKET
from tools import edge_image as builder
from tools.needs import cache

CONTROLLER = "controller"


def edge_image(folder: Path) -> Path:
    """The project's own image as a tar in ``folder``, from the work tree as it is; what seldom changes is kept in the cache.
    BANYAN_EDGE_IMAGE names one that was built before."""
    if built := os.environ.get("BANYAN_EDGE_IMAGE"):
        return Path(built)
    tar = folder / "banyan-edge.tar"
    builder.build(tar, keep=cache() / "image-parts")
    return tar


def load_worker(member: Member, tar: Path) -> str:
    """Give the node the project's own image; the name by which pods ask for it."""
    listed = images(member)
    name = next((found for found in listed if "/banyan-edge:" in found), "")
    if not name:
        member.load_image(tar)
        name = next(found for found in images(member) if "/banyan-edge:" in found)
    return name.rpartition("/")[2]


def images(member: Member) -> list[str]:
    return member.machine.run(["ctr", "--address", SOCKET, "--namespace", "k8s.io", "images", "list", "--quiet"]).split()


class SiteController:
    """``banyan join`` and ``banyan run`` at a member's site, with its data on the member's disk."""

    def __init__(self, member: Member, name: str, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self.member = member
        self.name = name
        self.folder = folder
        self._environment = environment or {}

    def join(self, token: str, **kubernetes: str) -> None:
        self.member.disown()
        used = [word for key, value in kubernetes.items() for word in ("--kubernetes", f"{key}={value}")]
        self._start(
            "join", token, "--name", self.name, "--api-listen", "127.0.0.1:0", "--tunnel-listen", "",
            "--shim", "kubernetes", "--kubeconfig", str(self.member.site_kubeconfig), *used,
        )  # fmt: skip

    def run(self) -> None:
        self._start("run")

    def _start(self, *words: str) -> None:
        environment = {"BANYAN_LOG_FORMAT": "human", "BANYAN_DATA": str(self.folder)} | dict(self._environment)
        self.member.run_at_site(CONTROLLER, [sys.executable, "-m", "banyanctl", *words], environment)

    def kill(self) -> None:
        self.member.kill(CONTROLLER)

    def power_off(self) -> None:
        """Of the machine that the controller runs on; the cluster's are others."""
        self.kill()

    @property
    def uid(self) -> str:
        return load(self.folder / "identity").uid

    @property
    def parent_uid(self) -> str:
        return load(self.folder / "identity").parent_uid

    def banyan(self, *words: str, stdin: str = "") -> str:
        """A command on site, with the site's own credential."""
        return self.member.machine.run([sys.executable, "-m", "banyanctl", "--data", str(self.folder), *words], stdin=stdin)

    def get(self, *words: str) -> Any:
        return json.loads(self.banyan("get", *words, "-o", "json"))

    def log(self) -> str:
        return self.member.log(CONTROLLER)


def wait_ready(root: Site, controller: SiteController) -> None:
    """Until ``root`` sees it Ready; fails with its log when it ends instead."""

    def ready() -> bool:
        if not controller.member.machine.runs(CONTROLLER):
            pytest.fail(f"the controller of {controller.name} ended:\n{controller.log()}")
        return bool(root.clusters().get(controller.name, {}).get("phase") == "Ready")

    try:
        until(f"{controller.name} is Ready at {root.name}", ready)
    except BaseException:
        print(controller.log())
        raise
