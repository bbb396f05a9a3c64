"""Streams that lead to this controller's API: believed only from the parent, and never in the name of somebody who asks at this site."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from cluster_controller import clock, config
from cluster_controller.app import Controller
from cluster_controller.identity import Identity, create_root
from cluster_controller.identity import folder as folders
from cluster_controller.tunnel import StreamReset
from cluster_shim.contract import ByteStream, OpenTarget, ShimError
from openapi.front.auth import encode_user
from openapi.front.member import MEMBER
from openapi.services import Grant, User
from openapi.serving import Serving
from tests.tunnel.support import Member, below, run

REQUEST = b"GET /api HTTP/1.1\r\nHost: x\r\n\r\n"
PATIENCE = 20.0  # seconds; a bound against hanging


class Site(Controller):
    """A controller with a cluster behind it that is asked, and never answers."""

    def __init__(self, folder: Path, identity: Identity) -> None:
        given = {"name": identity.name, "shim": "none", "api_listen": "127.0.0.1:0", "tunnel_listen": "127.0.0.1:0"}
        super().__init__(config.load(folder, {}, given), None, version="1")
        self.asked: list[OpenTarget] = []
        folders.create(self.config.identity_folder)
        folders.save(self.config.identity_folder, identity.saved)

    async def open_local(self, target: OpenTarget) -> ByteStream:
        self.asked.append(target)
        raise ShimError("there is nobody behind this door")


@contextlib.asynccontextmanager
async def tree(folder: Path) -> AsyncIterator[tuple[Member, Site, Site]]:
    """root, a controller below it, and a child of that, which does what it likes."""
    now = clock.wall()
    top = Member(create_root(folder / "root", "root", now))
    own = below(top.identity, "region", now, f"127.0.0.1:{await top.tunnel.serve('127.0.0.1', 0)}")
    region = Site(folder / "region", own)
    async with contextlib.AsyncExitStack() as ending:
        ending.push_async_callback(top.close)
        await region.start()
        ending.push_async_callback(region.stop)
        serving = Serving(region)
        serving.services.no_member_api = lambda: ""  # type: ignore[method-assign]
        ending.push_async_callback(serving.close, 0.1)
        edge = Site(folder / "edge", below(own, "edge", now, f"127.0.0.1:{region.tunnel_port}"))
        await edge.start()
        ending.push_async_callback(edge.stop)
        await top.until(lambda: top.router.next_hop(edge.uid))
        yield top, region, edge


def person(entry: str) -> bytes:
    return encode_user(User(name="ann", groups=("banyan:admin",), entry=entry, grants=(Grant("admin", ""),)), "0123456789abcdef")


async def answer(opener: Member | Site, region: Site, metadata: bytes) -> bytes:
    async with asyncio.timeout(PATIENCE):
        stream = await opener.tunnel.open(region.uid, MEMBER, metadata)
        await stream.write(REQUEST)
        found = b""
        while data := await stream.read():
            found += data
        return found


def test_a_person_is_believed_from_the_parent_and_has_the_id_of_the_entry(tmp_path: Path) -> None:
    async def main() -> None:
        async with tree(tmp_path) as (top, region, _):
            said = await answer(top, region, person(top.uid))
            assert b"there is nobody behind this door" in said
            (target,) = region.asked
            assert target.options == {"user": "ann", "group": "banyan:admin", "entry": top.uid}
            assert msgspec.json.decode((tmp_path / "region" / "audit.log").read_bytes())["id"] == "0123456789abcdef"

    run(main)


def test_a_child_is_not_believed_whoever_it_says_asks(tmp_path: Path) -> None:
    async def main() -> None:
        async with tree(tmp_path) as (top, region, edge):
            for entry in (top.uid, edge.uid, region.uid):
                with pytest.raises(StreamReset):
                    await answer(edge, region, person(entry))
            assert region.asked == []

    run(main)


def test_nobody_from_above_entered_the_tree_here(tmp_path: Path) -> None:
    async def main() -> None:
        async with tree(tmp_path) as (top, region, _):
            with pytest.raises(StreamReset, match="cannot have entered the tree at region"):
                await answer(top, region, person(region.uid))
            assert region.asked == []

    run(main)
