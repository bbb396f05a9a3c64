"""`banyan join --print-manifest`, and joining as a pod does it: from a file, again and again."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from banyanctl import manifest
from banyanctl.manifest import Wanted
from cluster_controller.errors import BanyanError
from cluster_controller.identity import token as tokens

WORD = tokens.encode(
    tokens.new(parent="a" * 26, parent_name="root", addresses=("192.0.2.1:10000",), tree_ca_digest="00" * 32, identifier="edge-k8s")
)


def banyan(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "banyanctl", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, input=stdin)


def test_the_command_prints_one_manifest_and_warns_of_the_token(tmp_path: Path) -> None:
    options = ["--name", "edge-k8s", "--print-manifest", "--image", "example.com/b:1", "--labels", "tier=edge", "--namespace", "site"]
    done = banyan("--data", str(tmp_path / "none"), "join", "-", *options, stdin=WORD + "\n")
    assert done.returncode == 0, done.stderr
    objects = list(yaml.safe_load_all(done.stdout))
    (secret,) = [each for each in objects if each["kind"] == "Secret" and each["metadata"]["name"] == "banyan-edge-join"]
    assert secret["stringData"] == {"token": WORD}
    assert "token" in done.stderr
    assert WORD not in done.stderr
    assert not (tmp_path / "none").exists()
    elsewhere = [each for each in objects if each["metadata"].get("namespace", "site") != "site"]
    assert [(each["kind"], each["metadata"]["namespace"]) for each in elsewhere] == [("RoleBinding", "kube-public")]


@pytest.mark.parametrize(
    ("option", "value"),
    [("--install", ""), ("--kubeconfig", "x"), ("--context", "x"), ("--api-listen", "127.0.0.1:0"), ("--tunnel-listen", "127.0.0.1:0")],
)
def test_what_is_about_this_machine_is_refused(option: str, value: str) -> None:
    done = banyan("join", WORD, "--name", "edge", "--print-manifest", *filter(None, (option, value)))
    assert done.returncode == 2
    assert "about this machine" in done.stderr
    assert not done.stdout


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"token": WORD[:-3]}, "token"),
        ({"name": "Edge"}, "--name"),
        ({"name": "a: b"}, "--name"),
        ({"namespace": "a\nb"}, "--namespace"),
        ({"shim": "process"}, "--shim"),
        ({"profile": "all"}, "--profile"),
        ({"profile": "namespaced"}, "--applications-in"),
        ({"targets": ("shop",)}, "--applications-in"),
        ({"profile": "namespaced", "targets": ("shop", "a b")}, "--applications-in"),
        ({"image": 'x" evil: "y'}, "--image"),
        ({"storage_class": 'fast"'}, "--storage-class"),
        ({"labels": {"a": 'b"\n'}}, "--labels"),
        ({"labels": {"a=b": "c"}}, "--labels"),
        ({"kubernetes": {"cache": "a,b"}}, "--kubernetes"),
        ({"kubernetes": {"cache": "a\\"}}, "--kubernetes"),
        ({"proxy": "proxy:3128"}, "--proxy"),
        ({"proxy": "http://proxy:port"}, "--proxy"),
    ],
)
def test_what_cannot_stand_in_a_manifest_is_refused_by_name(changed: dict[str, object], named: str) -> None:
    given = {"token": WORD, "name": "edge", **changed}
    with pytest.raises(BanyanError) as refused:
        manifest.write(Wanted(**given))  # type: ignore[arg-type]
    assert named in str(refused.value)


def test_a_password_with_quotes_stays_a_password() -> None:
    url = 'http://ann:a"b\\c@proxy.example.com'
    objects = list(yaml.safe_load_all(manifest.write(Wanted(token=WORD, name="edge", proxy=url))))
    (secret,) = [each for each in objects if each["metadata"]["name"] == "banyan-edge-proxy"]
    assert secret["stringData"] == {"url": url}
    (policy,) = [each for each in objects if each["kind"] == "NetworkPolicy"]
    assert [each["port"] for each in policy["spec"]["egress"][1]["ports"]] == [80, 10000]


def test_a_token_may_stand_in_a_file(tmp_path: Path) -> None:
    missing = banyan("--data", str(tmp_path / "edge"), "join", f"@{tmp_path / 'token'}", "--name", "edge", "--no-run")
    assert missing.returncode == 2
    assert f"{tmp_path / 'token'} cannot be read" in missing.stderr
    (tmp_path / "token").write_text("\n", encoding="utf-8")
    empty = banyan("--data", str(tmp_path / "edge"), "join", f"@{tmp_path / 'token'}", "--name", "edge", "--no-run")
    assert "empty" in empty.stderr
    (tmp_path / "token").write_text(WORD[:-5], encoding="utf-8")
    damaged = banyan("--data", str(tmp_path / "edge"), "join", f"@{tmp_path / 'token'}", "--name", "edge", "--no-run")
    assert damaged.returncode == 23
    assert not (tmp_path / "edge").exists()


def test_if_new_changes_nothing_where_a_cluster_lives(tmp_path: Path) -> None:
    where = ["--data", str(tmp_path / "root")]
    first = banyan(*where, "init", "root", "--if-new", "--api-listen", "127.0.0.1:0", "--tunnel-listen", "127.0.0.1:0")
    assert first.returncode == 0, first.stderr
    before = {path: path.read_bytes() for path in (tmp_path / "root").rglob("*") if path.is_file()}
    for again in (["init", "other"], ["join", "@/nowhere/at/all", "--name", "other", "--no-run"]):
        done = banyan(*where, *again, "--if-new")
        assert done.returncode == 0, done.stderr
        assert "root lives in" in done.stderr
    assert {path: path.read_bytes() for path in (tmp_path / "root").rglob("*") if path.is_file()} == before
