"""Who a request comes from: credentials of this controller, of its ancestors, of strangers."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from cluster_controller.errors import AlreadyExists, NotFound, Unauthenticated
from cluster_controller.identity import Grant, certificates
from cluster_controller.resources import kinds
from cluster_controller.tree import people, records
from tests.tree.site import Clock, Site, member, root, run, until


def ders(pem: str | bytes) -> tuple[bytes, ...]:
    text = pem.encode() if isinstance(pem, str) else pem
    return tuple(certificates.der(one) for one in certificates.parse_pem(text, "test"))


def spec(credential: Any = "certificate", *grants: tuple[Any, str], seconds: int = 3600) -> kinds.UserSpec:
    listed = [kinds.GrantSpec(role=role, namespace=namespace) for role, namespace in grants or (("edit", "shop"),)]
    return kinds.UserSpec(grants=listed, expires_after_seconds=seconds, credential=credential)


@asynccontextmanager
async def tree(tmp_path: Path, clock: Clock) -> AsyncIterator[tuple[Site, Site, Site]]:
    async with (
        root(tmp_path / "root", clock) as top,
        member(top, tmp_path / "a", "region-a") as region,
        member(top, tmp_path / "b", "region-b") as other,
    ):
        yield top, region, other


Check = Callable[[Site], Any]


async def known(site: Site, name: str, credential: str) -> tuple[Check, kinds.User]:
    """Make a user at ``site``; a function that presents the credential to any site."""
    user, shown = await site.membership.create_user(name, spec(credential))
    if credential == "token":
        return lambda at: at.membership.authenticate_bearer(shown["token"], at.clock()), user
    return lambda at: at.membership.authenticate_certificate(ders(shown["certificate"]), at.clock()), user


@pytest.mark.parametrize("credential", ["certificate", "token"])
def test_a_user_is_known_dated_changed_and_revoked(tmp_path: Path, credential: str) -> None:
    async def main() -> None:
        clock = Clock()
        async with root(tmp_path / "root", clock) as top:
            present, _ = await known(top, "alice", credential)
            found = present(top)
            assert (found.name, found.entry, found.grants) == ("alice", top.uid, (Grant("edit", "shop"),))
            assert "banyan:edit:shop" in found.groups and "system:authenticated" in found.groups

            with pytest.raises(AlreadyExists):
                await top.membership.create_user("alice", spec())
            stored = top.store.get(records.user_key("alice"))
            assert stored is not None
            narrowed = stored.document.replace(b'"edit"', b'"view"')
            await top.store.commit(lambda tx: tx.put(stored.key, narrowed, uid=stored.uid))
            assert present(top).grants == (Grant("view", "shop"),), "a change counts at once"
            assert top.membership.authenticate_again(found, clock()).grants == (Grant("view", "shop"),)

            clock.advance(seconds=3601)
            with pytest.raises(Unauthenticated, match="expired at 2026-03-01T13:00:00Z, here it is"):
                present(top)
            with pytest.raises(Unauthenticated):
                top.membership.authenticate_again(found, clock())
            clock.advance(seconds=-3601)
            await top.membership.revoke_user("alice")
            for ask in (lambda: present(top), lambda: top.membership.authenticate_again(found, clock())):
                with pytest.raises(Unauthenticated, match="alice was revoked"):
                    ask()
            await top.store.commit(lambda tx: tx.delete(records.user_key("alice")))
            with pytest.raises(Unauthenticated):
                present(top)
            with pytest.raises(NotFound):
                await top.membership.revoke_user("alice")

    run(main())


def test_no_secret_is_stored(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Clock()
        async with root(tmp_path / "root", clock) as top:
            text = await top.token("t1")
            _, certificate = await top.membership.create_user("alice", spec())
            _, bearer = await top.membership.create_user("bob", spec("token"))
            on_disk = b"".join(path.read_bytes() for path in (tmp_path / "root").glob("store*"))
            assert b"t1" in on_disk and b"alice" in on_disk
            for secret in (text, bearer["token"], bearer["token"].split("_")[2], certificate["key"].splitlines()[1]):
                assert secret.encode() not in on_disk

    run(main())


def test_an_ancestors_user_is_known_below_and_nowhere_else(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Clock()
        async with tree(tmp_path, clock) as (top, region, other):
            of_top, made = await known(top, "alice", "certificate")
            of_region, _ = await known(region, "mallory", "certificate")
            below = of_top(region)
            assert (below.name, below.entry, below.grants) == ("alice", region.uid, (Grant("edit", "shop"),))
            assert of_region(region).name == "mallory"
            for stranger in (top, other):
                with pytest.raises(Unauthenticated, match="does not stand above"):
                    of_region(stranger)

            credential = made.status.credential_id
            revoked = kinds.Revocation(spec=kinds.RevocationSpec(subject="user", id=credential))
            await region.store.commit(
                lambda tx: tx.put(records.revocation_key("desired", credential), records.encode(revoked), uid=credential)
            )
            with pytest.raises(Unauthenticated, match="alice was revoked"):
                of_top(region)
            with pytest.raises(Unauthenticated, match="alice was revoked"):
                region.membership.authenticate_again(below, clock())

    run(main())


def test_a_revoked_user_is_revoked_for_all_children(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Clock()
        async with tree(tmp_path, clock) as (top, region, other):
            _, made = await known(top, "alice", "certificate")
            await top.membership.revoke_user("alice")
            for child in (region, other):
                await until(lambda child=child: top.store.get(records.revocation_key(f"down/{child.uid}", made.status.credential_id)))

    run(main())


def test_a_region_cannot_pass_for_its_parent(tmp_path: Path) -> None:
    """It may sign whatever it likes below itself, an issuing certificate in the root's name included: the path betrays it."""

    async def main() -> None:
        clock = Clock()
        async with tree(tmp_path, clock) as (top, region, other):
            from cluster_controller.identity import keys
            from cluster_controller.identity.authority import Authority
            from cluster_controller.identity.certificates import Signer

            authority, key = region.identity().issuing(), keys.generate()
            fake = certificates.issuing(authority.signer, "root", top.uid, key.public_key(), now=clock(), lifetime=timedelta(days=1))
            forged = Authority(Signer(fake, key), (fake, *authority.chain)).user("eve", [Grant("admin")], clock(), timedelta(days=1))
            for victim in (top, other):
                with pytest.raises(Unauthenticated):
                    victim.membership.authenticate_certificate(ders(forged.certificate), clock())
            # Nor by putting the root's true certificates into what it shows.
            leaf, *_ = ders(forged.certificate)
            true = tuple(certificates.der(one) for one in top.identity().issuing().chain)
            with pytest.raises(Unauthenticated):
                top.membership.authenticate_certificate((leaf, *true), clock())

    run(main())


def test_the_loopback_admin_works_on_site_and_only_there(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Clock()
        async with tree(tmp_path, clock) as (top, region, _):
            credential = region.membership.loopback_admin()
            clock.advance(days=-3000)  # it was wrong when this controller started, and has been set right
            for days in (0, 6000):  # cut off for years, every other certificate is past
                clock.advance(days=days)
                for remote in ("127.0.0.1", "::1", "::ffff:127.0.0.1", None):
                    found = region.membership.authenticate_certificate(ders(credential.certificate), clock(), remote)
                    assert found.grants == (Grant("admin"),)
                    assert region.membership.authenticate_again(found, clock()) == found
            for remote in ("10.0.0.7", "fe80::1%eth0", "nonsense"):
                with pytest.raises(Unauthenticated, match="on the machine itself"):
                    region.membership.authenticate_certificate(ders(credential.certificate), clock(), remote)
            with pytest.raises(Unauthenticated):
                top.membership.authenticate_certificate(ders(credential.certificate), clock(), "127.0.0.1")

    run(main())


def test_a_leaf_has_users_of_its_own(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Clock()
        async with root(tmp_path / "root", clock) as top, member(top, tmp_path / "l", "leaf", may_have_children=False) as leaf:
            present, _ = await known(leaf, "operator", "certificate")
            assert present(leaf).name == "operator"
            with pytest.raises(Unauthenticated):
                present(top)

    run(main())


@pytest.mark.parametrize("chain", [(), (b"",), (b"x" * 100,), (b"x" * 10_000,) * 3], ids=["none", "empty", "noise", "large"])
def test_noise_is_nobody(tmp_path: Path, chain: tuple[bytes, ...]) -> None:
    async def main() -> None:
        clock = Clock()
        async with root(tmp_path / "root", clock) as top:
            with pytest.raises(Unauthenticated):
                top.membership.authenticate_certificate(chain, clock())
            with pytest.raises(Unauthenticated, match="is not accepted"):
                top.membership.authenticate_certificate(top.identity().peer.chain, clock())  # a cluster is no person
            for text in ("", "x", "bnyu_", "bnyu_" + "0" * 16 + "_" + "0" * 48):
                with pytest.raises(Unauthenticated, match="not known here"):
                    top.membership.authenticate_bearer(text, clock())

    run(main())


def test_many_foreign_users_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        clock = Clock()
        monkeypatch.setattr(people, "MAX_SEEN", 2)
        async with tree(tmp_path, clock) as (top, region, _):
            seen = []
            for number in range(3):
                present, _ = await known(top, f"u{number}", "certificate")
                seen.append(present(region))
            assert len(region.membership.people._foreign) == 2
            with pytest.raises(Unauthenticated):  # forgotten: the connection has to be made anew
                region.membership.authenticate_again(seen[0], clock())
            assert region.membership.authenticate_again(seen[2], clock()) == seen[2]

    run(main())
