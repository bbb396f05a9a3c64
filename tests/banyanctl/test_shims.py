"""Which shim a controller gets: what can be known to be wrong is said before anything is made, or a token is spent."""

import subprocess
import sys
from pathlib import Path

import pytest

from banyanctl import shims
from cluster_controller import config
from cluster_controller.config import Config
from cluster_controller.errors import InvalidInput

PLACE = Path("/nowhere/data")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"shim": "kubernets"}, "'kubernets': it is process, kubernetes, k3s, none, unix:/PATH or HOST:PORT"),
        ({"shim": "kubernetes", "kubernetes": {"worker_imag": "x"}}, "there is no worker_imag; it has worker_image"),
        ({"shim": "kubernetes", "member_kubeconfig": "/nowhere/config"}, "/nowhere/config: there is no such file"),
        ({"shim": "k3s", "member_kubeconfig": "/nowhere/config"}, "/nowhere/config: there is no such file"),
        ({"shim": "process", "member_kubeconfig": "/nowhere/config"}, "go with --shim kubernetes or k3s"),
        ({"shim": "none", "kubernetes": {"worker_image": "x"}}, "go with --shim kubernetes or k3s"),
        ({"capacity": {"cpu": "2"}}, "give both and nothing else, as in cpu=2,memory=4Gi"),
        ({"capacity": {"cpu": "2", "memory": "1Gi", "gpu": "1"}}, "give both and nothing else"),
        ({"capacity": {"cpu": "two", "memory": "1Gi"}}, "capacity: 'two' is not a quantity"),
        ({"shim": "kubernetes", "kubernetes": {"service_type": "Nodeport"}}, "service_type 'Nodeport': it is ClusterIP, NodePort or Load"),
        ({"shim": "k3s", "kubernetes": {"service_type": "loadbalancer"}}, "service_type 'loadbalancer'"),
        ({"shim": "kubernetes", "kubernetes": {"pull_policy": "never"}}, "pull_policy 'never': it is Always, IfNotPresent or Never"),
        (
            {"shim": "kubernetes", "kubernetes": {"cache": "/models"}},
            "cache '/models': it is hostPath:/PATH, pvc:CLAIM or emptyDir",
        ),
        ({"shim": "kubernetes", "kubernetes": {"files_url": "http://a:1"}}, "files_url 'http://a:1' is not https://HOST:PORT"),
        ({"shim": "kubernetes", "kubernetes": {"files_listen": "a:http"}}, "files_listen 'a:http' is not HOST:PORT"),
    ],
)
def test_what_can_never_work_is_refused(settings: dict[str, object], says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        shims.check(Config(data=PLACE, name="a", **settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("shim", ["process", "none", "kubernetes", "k3s", "unix:/run/shim.sock", "shim.example:9443"])
def test_what_may_work_is_left_to_the_start(shim: str) -> None:
    shims.check(Config(data=PLACE, name="a", shim=shim))


def test_settings_that_make_sense_pass() -> None:
    chosen = {
        "service_type": "NodePort",
        "pull_policy": "Never",
        "cache": "pvc:a",
        "files_url": "https://[::1]:1",
        "files_listen": "[::]:2",
    }
    shims.check(Config(data=PLACE, name="a", shim="kubernetes", kubernetes=chosen))
    shims.check(Config(data=PLACE, name="a", capacity={"cpu": "500m", "memory": "1Gi"}))


def test_a_site_that_would_never_run_keeps_its_token(tmp_path: Path) -> None:
    (tmp_path / "banyan.toml").write_text('capacity = {cpu = "2"}\n', encoding="utf-8")
    argv = [sys.executable, "-m", "banyanctl", "join", "banyan1x", "--name", "edge-1", "--data", str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and "cpu=2,memory=4Gi" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["banyan.toml"]


@pytest.mark.parametrize("arguments", [("init", "root"), ("join", "banyan1x", "--name", "edge-1")])
def test_a_mistyped_shim_leaves_nothing_behind(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    argv = [sys.executable, "-m", "banyanctl", *arguments, "--data", str(tmp_path / "site"), "--shim", "kubernets"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "it is process, kubernetes, k3s, none" in done.stderr
    assert not (tmp_path / "site").exists()


def test_the_kubeconfig_of_a_person_is_not_that_of_a_member(tmp_path: Path) -> None:
    """BANYAN_KUBECONFIG says whom `banyan` asks; a controller that is made in the same shell must not take it for its cluster's."""
    found = config.load(tmp_path, {"BANYAN_KUBECONFIG": "/kubeconfigs/tree"}, {"name": "edge-1", "shim": "kubernetes"})
    assert found.member_kubeconfig == ""
    found = config.load(tmp_path, {"BANYAN_MEMBER_KUBECONFIG": "/etc/site"}, {"name": "edge-1", "shim": "kubernetes"})
    assert found.member_kubeconfig == "/etc/site"


def test_how_often_usage_is_measured_is_what_was_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, object] = {}
    monkeypatch.setattr("cluster_shim.process.shim.ProcessShim", lambda folder, **options: given.update(options))
    shims.of(Config(data=tmp_path, name="a", report_usage_seconds=2.5))
    assert given["usage_seconds"] == 2.5
