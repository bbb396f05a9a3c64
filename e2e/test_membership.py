"""Who is let in, as a new site meets it: each failure with its own message and exit code, nothing left behind half made."""

import json
import re
import shutil
import time
from pathlib import Path

import pytest

from e2e.support import API, Site, Tree, talker, until


@pytest.fixture
def root(tree: Tree) -> Site:
    return tree.root()


def refused(tree: Tree, name: str, token: str, *options: str) -> tuple[int, str]:
    """Join in the foreground, expecting a refusal; exit code and what was said."""
    site = tree.site(name)
    done = site.banyan("join", token, "--name", name, "--no-run", *options, check=False)
    assert done.returncode != 0, done.stdout
    left = list(site.folder.rglob("*")) if site.folder.exists() else []
    assert left == [], f"{name} was refused, and {left} are left behind"
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
    uid = root.clusters()["edge-1"]["uid"]
    row = next(line for line in root.banyan("token", "list").stdout.splitlines() if "Used" in line)
    assert row.split()[1:3] == ["root", "Used"] and "edge-1" in row and uid not in row
    wide = next(line for line in root.banyan("token", "list", "-o", "wide").stdout.splitlines() if "Used" in line)
    assert "edge-1" in wide and uid in wide
    expiring = root.token("--expires", "1s")
    time.sleep(1.1)  # by the parent's own clock
    codes["expired"] = refused(tree, "edge-4", expiring)
    other = tree.root("other")
    port = re.findall(r"children join at port (\d+)", root.log(500))[0]
    codes["unreachable"] = _unreachable(tree, other)
    revoked = root.token()
    root.banyan("token", "revoke", newest_token(root))
    codes["revoked"] = refused(tree, "edge-6", revoked)
    gone = root.token()
    root.stop()
    shutil.rmtree(root.folder)
    root.banyan("init", "root", "--api-listen", "127.0.0.1:0", "--tunnel-listen", f"127.0.0.1:{port}", "--shim", "none")
    root.run()
    codes["wrong CA"] = refused(tree, "edge-7", gone)
    assert len({code for code, _ in codes.values()}) == len(codes), codes
    for name, (code, said) in codes.items():
        assert 20 <= code <= 29, (name, code, said)
        assert said.strip(), name


def newest_token(root: Site) -> str:
    items = root.get(f"{API}/jointokens")["items"]
    return str(max(items, key=lambda item: (item["metadata"]["creationTimestamp"], item["status"]["phase"] == "Open"))["metadata"]["name"])


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

    def cut_and_told() -> bool:
        return root.clusters()["edge-1"]["phase"] == "Revoked" and "revoked" in site.log()

    until("its link is cut and it is told", cut_and_told, began + 5 - time.monotonic())
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
    told = re.search(r"two instances run as edge-1: (\w+) is connected, (\w+) is held", copy.log(200))
    assert told is not None
    wrong = root.banyan("cluster", "keep", "edge-1", "--instance", "neither", check=False)
    assert (wrong.returncode, told[1] in wrong.stderr, told[2] in wrong.stderr) == (3, True, True)
    root.banyan("cluster", "keep", "edge-1", "--instance", told[2])
    until("the one that was kept is in", lambda: root.clusters()["edge-1"]["phase"] == "Ready")
    until("the other is told that it stays out", lambda: f"instance {told[2]} of edge-1 was kept" in site.log(200) + copy.log(200))


@pytest.mark.needs("kubectl")
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


def left_behind(site: Site) -> set[str]:
    return {path.name for path in site.folder.iterdir()}


WHO_IT_WAS = {"identity", "banyan.toml", "admin.kubeconfig", "store.db", "store.db-wal", "store.db-shm", "store.lock"}


@pytest.mark.needs("kubectl")
def test_a_running_site_leaves_with_one_command(tree: Tree, root: Site) -> None:
    site = tree.edge("edge-1", root)
    root.kubectl("apply", "-f", "-", stdin=json.dumps(talker(clusterName="edge-1")))
    until("it runs", lambda: root.status("talker").get("ready") == 1)
    assert site.process is not None
    asked = site.banyan("leave", check=False)  # nobody can be asked: nothing happens
    assert (asked.returncode, site.process.poll()) == (2, None)
    assert "edge-1 leaves root: its controller stops, its applications end" in asked.stderr
    told = json.loads(site.banyan("leave", "--yes", "-o", "json").stdout)
    assert told == {
        "name": "edge-1", "parent": "root", "told": True, "controllerStopped": True, "applications": "ended", "data": str(site.folder),
    }  # fmt: skip
    assert site.process.wait(5) == 0
    assert site.everything() == []
    assert not left_behind(site) & WHO_IT_WAS
    until("the root forgot it", lambda: "edge-1" not in root.clusters())
    again = site.banyan("leave", "--yes", check=False)
    assert (again.returncode, "no cluster lives in" in again.stderr) == (2, True)
    site.banyan("join", root.token(), "--name", "edge-1", "--no-run", "--tunnel-listen", "")  # the folder is as good as new


@pytest.mark.needs("kubectl")
def test_a_site_that_leaves_may_keep_what_it_runs(tree: Tree, root: Site) -> None:
    site = tree.edge("edge-1", root)
    root.kubectl("apply", "-f", "-", stdin=json.dumps(talker(clusterName="edge-1")))
    until("it runs", lambda: root.status("talker").get("ready") == 1)
    instance = next(pid for pid in site.everything() if b"'line'" in Path(f"/proc/{pid}/cmdline").read_bytes())
    assert "its applications run on" in site.banyan("leave", "--yes", "--keep-applications").stdout
    assert not left_behind(site) & WHO_IT_WAS
    until("the root forgot it", lambda: "edge-1" not in root.clusters())
    assert instance in site.everything()


def test_a_site_that_cannot_tell_its_parent_goes_on(tree: Tree, root: Site) -> None:
    site = tree.site("edge-1", BANYAN_SHIM="none")
    site.join(root.token(), "--tunnel-listen", "")
    site.wait()
    until("it is in", lambda: root.clusters()["edge-1"]["phase"] == "Ready")
    root.kill()
    until("it has noticed", lambda: 'seconds{peer="root"}' not in str(site.get("/metrics")))
    refused = site.banyan("leave", "--yes", check=False)
    assert refused.returncode == 8
    assert "nothing was changed" in refused.stderr
    assert site.process is not None and site.process.poll() is None
    site.stop()
    told = json.loads(site.banyan("leave", "--yes", "--force", "-o", "json").stdout)
    assert (told["told"], told["controllerStopped"]) == (False, False)
    assert not left_behind(site) & WHO_IT_WAS


def test_a_site_that_was_removed_meanwhile_leaves_in_peace(tree: Tree, root: Site) -> None:
    """So does one whose leaving was cut off after the parent had been told."""
    site = tree.site("edge-1", BANYAN_SHIM="none")
    site.join(root.token(), "--tunnel-listen", "")
    site.wait()
    until("it is in", lambda: root.clusters()["edge-1"]["phase"] == "Ready")
    site.stop()
    until("its link is down", lambda: root.clusters()["edge-1"]["phase"] == "Unknown")
    root.banyan("cluster", "remove", "edge-1")
    assert json.loads(site.banyan("leave", "--yes", "-o", "json").stdout)["told"] is True
    assert not left_behind(site) & WHO_IT_WAS


def test_a_region_with_clusters_below_does_not_leave_by_mistake(tree: Tree, root: Site) -> None:
    region = tree.region("region-a", root)
    edge = tree.site("edge-1", BANYAN_SHIM="none")
    edge.join(region.token(), "--tunnel-listen", "")
    edge.wait()
    until("it is in", lambda: region.clusters()["edge-1"]["phase"] == "Ready")
    refused = region.banyan("leave", "--yes", check=False)
    assert (refused.returncode, "edge-1" in refused.stderr) == (5, True)
    assert region.clusters()["edge-1"]["phase"] == "Ready"


def test_a_controller_without_a_cluster_says_nothing_of_a_shim(root: Site) -> None:
    assert json.loads(root.banyan("status", "-o", "json").stdout)["checks"] == {"store": "ok"}


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
    first.banyan("leave", "--yes")
    until("the root forgot it", lambda: "edge-1" not in root.clusters())
    second = tree.site("second", BANYAN_SHIM="none")
    second.banyan("join", region.token(), "--name", "edge-1", "--no-run", "--tunnel-listen", "")
