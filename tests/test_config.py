"""Settings: file, then environment, then flags; a wrong one is named with the place it came from; what is saved is read back."""

import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster_controller.config import FILE_LIMIT_BYTES, FILE_NAME, Config, load, parse_labels, save, split_address
from cluster_controller.errors import InvalidInput


def written(folder: Path, text: str) -> Path:
    (folder / FILE_NAME).write_text(text, encoding="utf-8")
    return folder


def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    written(tmp_path, 'name = "file"\napi_listen = "file:1"\nshim = "none"\nlog_level = "error"\n')
    environment = {"BANYAN_NAME": "environment", "BANYAN_API_LISTEN": "environment:2", "BANYAN_SHIM": "process", "OTHER": "x"}
    found = load(tmp_path, environment, {"name": "flag", "api_listen": None})
    assert (found.name, found.api_listen, found.shim, found.log_level) == ("flag", "environment:2", "process", "error")
    assert found.tunnel_listen == Config(data=tmp_path, name="x").tunnel_listen
    assert load(tmp_path, {}, {}).name == "file"


def test_the_environment_speaks_for_every_kind_of_field(tmp_path: Path) -> None:
    environment = {
        "BANYAN_NAME": "edge",
        "BANYAN_DATA": "/elsewhere",
        "BANYAN_LABELS": "tier=edge, zone = a ,empty=",
        "BANYAN_TUNNEL_ADVERTISE": "one:1, two:2,,",
        "BANYAN_HEARTBEAT_SECONDS": "2.5",
    }
    found = load(tmp_path, environment)
    assert found.data == tmp_path  # where the settings lie is not a setting
    assert found.labels == {"tier": "edge", "zone": "a", "empty": ""}
    assert (found.tunnel_advertise, found.heartbeat_seconds) == (("one:1", "two:2"), 2.5)


@pytest.mark.parametrize(
    ("text", "environment", "overrides", "said"),
    [
        ("name = [", {}, {}, "not valid TOML"),
        ('name = "a"\nnonsense = 1\n', {}, {}, "nonsense"),
        ("name = 7.5\n", {}, {}, "name"),
        ('name = "a"\nheartbeat_seconds = "often"\n', {}, {}, "heartbeat_seconds"),
        ('name = "a"\nlabels = ["x"]\n', {}, {}, "labels"),
        ('name = "a"\ntunnel_advertise = "x"\n', {}, {}, "tunnel_advertise"),
        ('name = "a"\n', {"BANYAN_HEARTBEAT_SECONDS": "0"}, {}, "heartbeat_seconds"),
        ('name = "a"\n', {"BANYAN_HEARTBEAT_SECONDS": "-1"}, {}, "heartbeat_seconds"),
        ('name = "a"\nheartbeat_seconds = inf\n', {}, {}, "heartbeat_seconds"),
        ('name = "a"\n', {}, {"report_usage_seconds": math.nan}, "report_usage_seconds"),
        ('name = "a"\n', {"BANYAN_LABELS": "tier"}, {}, "BANYAN_LABELS: 'tier' is not KEY=VALUE"),
        ('name = "a"\n', {"BANYAN_LABELS": "=edge"}, {}, "BANYAN_LABELS"),
        ("", {}, {}, "banyan init"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, text: str, environment: dict[str, str], overrides: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        load(written(tmp_path, text), environment, overrides)
    assert said in str(refused.value)


def test_a_file_that_cannot_be_a_configuration(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no cluster lives in"):
        load(tmp_path, {})
    (tmp_path / FILE_NAME).write_bytes(b'name = "\xff"')
    with pytest.raises(InvalidInput, match="not valid TOML"):
        load(tmp_path, {})
    written(tmp_path, "#" * (FILE_LIMIT_BYTES + 1))
    with pytest.raises(InvalidInput, match="larger than"):
        load(tmp_path, {})
    (tmp_path / FILE_NAME).unlink()
    (tmp_path / FILE_NAME).mkdir()
    with pytest.raises(InvalidInput, match="cannot be read"):
        load(tmp_path, {})


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
addresses = st.builds(lambda host, port: f"{host}:{port}", texts, st.integers(0, 65535))
seconds = st.floats(0.05, 3600, allow_nan=False)
configs = st.builds(
    Config,
    data=st.just(Path("/unused")),
    name=texts,
    api_listen=addresses,
    api_advertise=st.lists(texts, max_size=2).map(tuple),
    tunnel_listen=st.one_of(st.just(""), addresses),
    tunnel_advertise=st.lists(texts, max_size=2).map(tuple),
    proxy=texts,
    shim=texts,
    labels=st.dictionaries(texts, texts, max_size=3),
    node_name=texts,
    capacity=st.dictionaries(texts, texts, max_size=2),
    site_bind=texts,
    blob_budget=st.sampled_from(["4Gi", "1", "1e9", "250M"]),
    model_rate=st.sampled_from(["", "0", "2M", "256Ki"]),
    model_windows=st.sampled_from([(), ("22:00-06:00",), ("01:00-02:00", "12:30-13:30")]),
    heartbeat_seconds=seconds,
    report_usage_seconds=seconds,
    log_format=texts,
    log_level=texts,
)


@given(configs)
def test_what_is_saved_is_read_back(config: Config) -> None:
    with TemporaryDirectory() as folder:
        config = msgspec.structs.replace(config, data=Path(folder) / "data")
        save(config)
        assert load(config.data, {}) == config


def test_saving_writes_only_what_differs_and_keeps_it_private(tmp_path: Path) -> None:
    data = tmp_path / "site"
    config = Config(data=data, name="edge-1", proxy="http://user:password@proxy:3128")
    save(config)
    lines = (data / FILE_NAME).read_text(encoding="utf-8").splitlines()
    assert lines[1:] == ['name = "edge-1"', 'proxy = "http://user:password@proxy:3128"']
    assert (data / FILE_NAME).stat().st_mode & 0o777 == 0o600
    assert data.stat().st_mode & 0o077 == 0
    save(msgspec.structs.replace(config, proxy=""))
    assert "password" not in (data / FILE_NAME).read_text(encoding="utf-8")
    assert [path.name for path in data.iterdir()] == [FILE_NAME]


def test_folders_lie_below_the_data(tmp_path: Path) -> None:
    config = Config(data=tmp_path, name="x")
    assert {path.name for path in (config.identity_folder, config.blob_folder, config.model_folder, config.process_folder)} == {
        "identity", "blobs", "models", "process",
    }  # fmt: skip
    assert config.admin_kubeconfig.parent == tmp_path


@pytest.mark.parametrize(
    ("address", "parts"),
    [("host:1", ("host", 1)), ("[::1]:65535", ("::1", 65535)), (":0", ("", 0))],
)
def test_an_address_has_a_host_and_a_port(address: str, parts: tuple[str, int]) -> None:
    assert split_address(address, "field") == parts


@pytest.mark.parametrize("address", ["", "host", "host:", "host:x", "host:65536", "host:-1", "host:²"])
def test_anything_else_is_refused_by_name(address: str) -> None:
    with pytest.raises(InvalidInput, match="api_listen") as refused:
        split_address(address, "api_listen")
    assert refused.value.field == "api_listen"


def test_labels_may_be_given_in_one_line() -> None:
    assert parse_labels("a=1,b=2=3, ,", "--labels") == {"a": "1", "b": "2=3"}
