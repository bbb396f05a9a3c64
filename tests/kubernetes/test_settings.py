"""Which settings of a site make sense. (`tests/banyanctl/test_shims.py`: that those which do not cost no token.)"""

import pytest

from cluster_shim.contract import ShimError
from cluster_shim.kubernetes import settings
from cluster_shim.kubernetes.render import Settings
from cluster_shim.kubernetes.settings import Address


def test_what_is_not_said_is_found_out() -> None:
    settings.check(Settings())
    assert settings.files_address(Settings()) is None and settings.files_listen(Settings()) is None


@pytest.mark.parametrize(
    ("url", "address"),
    [("https://a.b-c_d:1/", Address("a.b-c_d", 1)), ("https://[fd00::1]:65535", Address("fd00::1", 65535))],
)
def test_where_pods_find_files(url: str, address: Address) -> None:
    assert settings.files_address(Settings(files_url=url)) == address
    assert address.url == url.rstrip("/")


@pytest.mark.parametrize(
    "url", ["https://a:65536", "https://a b:1", "https://u@a:1", "https://[::1:1", "https://a:1?x", "https://a:\u0661"]
)
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(ShimError, match="is not https://HOST:PORT"):
        settings.files_address(Settings(files_url=url))


@pytest.mark.parametrize(("text", "place"), [("[::1]:8444", ("::1", 8444)), ("0.0.0.0:0", ("0.0.0.0", 0)), (":1", ("", 1))])
def test_where_files_listen(text: str, place: tuple[str, int]) -> None:
    assert settings.files_listen(Settings(files_listen=text)) == place


@pytest.mark.parametrize("text", ["a", "a:", "a:65536", "a:-1", "a:\u0661"])
def test_a_place_that_is_none(text: str) -> None:
    with pytest.raises(ShimError, match="is not HOST:PORT"):
        settings.check(Settings(files_listen=text))


@pytest.mark.parametrize(
    "chosen", [Settings(service_type="ExternalName"), Settings(pull_policy=""), Settings(cache="hostPath:relative"), Settings(cache="pvc:")]
)
def test_what_a_setting_may_be_is_said(chosen: Settings) -> None:
    with pytest.raises(ShimError, match=r"kubernetes\.\w+ '.*': it is "):
        settings.check(chosen)
