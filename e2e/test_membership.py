"""Who is let in, as a new site meets it: each failure with its own message and exit code, nothing left behind half made."""

import shutil
import time

import pytest

from e2e.support import API, Site, Tree, until


@pytest.fixture
def root(tree: Tree) -> Site:
    return tree.root()


def refused(tree: Tree, name: str, token: str, *options: str) -> tuple[int, str]:
    """Join in the foreground, expecting a refusal; exit code and what was said."""
    site = tree.site(name)
    done = site.banyan("join", token, "--name", name, "--no-run", *options, check=False)
    assert done.returncode != 0, done.stdout
    assert not (site.folder / "identity" / "identity.json").exists()
    return done.returncode, done.stderr


def test_each_bad_token_has_its_own_error(tree: Tree, root: Site) -> None:
    good = root.token()
    joined = tree.site("edge-1").banyan("join", good, "--name", "edge-1", "--no-run")
    assert "edge-1" in joined.stdout + joined.stderr
    again = tree.sites["edge-1"].banyan("join", good, "--name", "edge-1", "--no-run")
    assert again.returncode == 0  # the same command twice is safe
    codes = {
        "used": refused(tree, "edge-2", good),
        "altered": refused(tree, "edge-3", good[:-6] + ("aaaaaa" if good[-6:] != "aaaaaa" else "bbbbbb")),
        "taken": refused(tree, "edge-1b", root.token(), "--name", "edge-1"),
    }
    expiring = root.token("--expires", "1s")
    time.sleep(1.1)  # by the parent's own clock
    codes["expired"] = refused(tree, "edge-4", expiring)
    other = tree.root("other")
    codes["unreachable"] = _unreachable(tree, other)
    assert len({code for code, _ in codes.values()}) == len(codes), codes
    for name, (code, said) in codes.items():
        assert 20 <= code <= 29, (name, code, said)
        assert said.strip(), name


def _unreachable(tree: Tree, other: Site) -> tuple[int, str]:
    token = other.token()
    other.kill()
    return refused(tree, "edge-5", token)


def test_approval_replacement_and_revocation(tree: Tree, root: Site) -> None:
    site = tree.site("edge-1", BANYAN_SHIM="none")
    site.join(root.token("--approve"), "--tunnel-listen", "")
    until("it waits", lambda: root.clusters().get("edge-1", {}).get("phase") == "Pending")
    root.banyan("approve", "edge-1")
    site.wait()
    until("it is in", lambda: root.clusters()["edge-1"]["phase"] == "Ready")
    began = time.monotonic()
    root.banyan("cluster", "revoke", "edge-1")
    until("its link is cut", lambda: root.clusters()["edge-1"]["phase"] == "Revoked", 5.0)
    until("it is told", lambda: "revoked" in site.log(), 5.0)
    assert time.monotonic() - began < 30
    fresh = tree.site("new-machine", BANYAN_SHIM="none")
    fresh.launch(
        "--data", str(fresh.folder), "join", root.token("--replace", "edge-1"), "--name", "edge-1", "--api-listen", "127.0.0.1:0",
        "--tunnel-listen", "",
    )  # fmt: skip
    fresh.wait()
    until("the new machine has its place", lambda: root.clusters()["edge-1"]["phase"] == "Ready")


def test_a_copied_data_folder_is_held_and_both_are_told(tree: Tree, root: Site) -> None:
    site = tree.site("edge-1", BANYAN_SHIM="none")
    site.join(root.token(), "--tunnel-listen", "")
    site.wait()
    until("it is in", lambda: root.clusters().get("edge-1", {}).get("phase") == "Ready")
    copy = tree.site("copy", BANYAN_SHIM="none")
    shutil.copytree(site.folder, copy.folder)
    copy.launch("run", "--data", str(copy.folder))
    until("the copy is held", lambda: root.clusters()["edge-1"]["phase"] == "Held")
    until("both are told", lambda: "held" in site.log(200).lower() and "held" in copy.log(200).lower())
    assert "two instances" in root.log(200) or "held" in root.log(200)


def test_people_have_the_rights_that_they_were_given(tree: Tree, root: Site) -> None:
    viewer = tree.folder / "viewer.kubeconfig"
    root.banyan("user", "create", "vera", "--group", "view", "--namespace", "default", "--kubeconfig-out", str(viewer))
    assert "vera" in root.kubectl("auth", "whoami", kubeconfig=viewer)
    assert root.kubectl("auth", "can-i", "create", "applications", kubeconfig=viewer, check=False).startswith("no")
    assert "orbidden" in root.kubectl("create", "configmap", "x", kubeconfig=viewer, check=False)
    assert "orbidden" in root.kubectl("get", "secrets", kubeconfig=viewer, check=False)
    root.kubectl("get", "applications", kubeconfig=viewer)
    root.banyan("user", "revoke", "vera")
    until("she is barred", lambda: "was revoked" in root.kubectl("get", "applications", kubeconfig=viewer, check=False))


def test_leave_forgets_the_site_on_both_sides(tree: Tree, root: Site) -> None:
    site = tree.site("edge-1", BANYAN_SHIM="none")
    site.join(root.token(), "--tunnel-listen", "")
    site.wait()
    busy = site.banyan("leave", check=False)
    assert busy.returncode == 10
    assert "stop that controller" in busy.stderr
    site.stop()
    site.banyan("leave")
    until("the root forgot it", lambda: "edge-1" not in root.clusters())
    assert not (site.folder / "identity" / "identity.json").exists()


def test_nothing_is_served_anonymously_but_healthz(root: Site) -> None:
    import http.client
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    from banyanctl.endpoint import read

    host, port = read(root.folder / "admin.kubeconfig").address
    for path, code in (("/healthz", 200), ("/version", 401), ("/metrics", 401), (f"{API}/clusters", 401), ("/openapi/v3", 401)):
        connection = http.client.HTTPSConnection(host, port, context=context, timeout=10)
        connection.request("GET", path)
        assert connection.getresponse().status == code, path
        connection.close()


def test_a_name_is_free_again_after_its_cluster_has_left(tree: Tree, root: Site) -> None:
    region = tree.region("region-a", root)
    until("region-a is in", lambda: root.clusters()["region-a"]["phase"] == "Ready")
    first = tree.site("edge-1", BANYAN_SHIM="none")
    first.join(region.token(), "--tunnel-listen", "")
    first.wait()
    until("the root knows edge-1", lambda: root.clusters().get("edge-1", {}).get("phase") == "Ready")
    first.stop()
    first.banyan("leave")
    until("the root forgot it", lambda: "edge-1" not in root.clusters())
    second = tree.site("second", BANYAN_SHIM="none")
    second.banyan("join", region.token(), "--name", "edge-1", "--no-run", "--tunnel-listen", "")
