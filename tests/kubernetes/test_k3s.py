"""Where k3s keeps its kubeconfig, and who is told what when it is not to be had."""

from pathlib import Path

import pytest

from cluster_shim.contract import ShimError
from cluster_shim.k3s.shim import access
from cluster_shim.kubernetes.api import Access


def test_the_kubeconfig_that_k3s_writes_is_taken_unless_another_is_named(tmp_path: Path) -> None:
    place = tmp_path / "k3s.yaml"
    place.touch()
    assert access(Access(context="site"), place, in_pod=False) == Access(kubeconfig=str(place), context="site")
    assert access(Access(kubeconfig="/mine"), place, in_pod=False) == Access(kubeconfig="/mine")
    assert access(Access(), place, in_pod=True) == Access()


def test_a_place_that_is_not_there_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ShimError, match=r"k3s\.yaml is not here; run this on a k3s server as root, or name a kubeconfig"):
        access(Access(), tmp_path / "k3s.yaml", in_pod=False)
