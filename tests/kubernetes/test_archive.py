"""Archives as somebody with bad intent makes them."""

import gzip
import io
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import pytest

from cluster_shim.contract import ShimError
from cluster_shim.kubernetes import archive

CHART = ("web/Chart.yaml", b"apiVersion: v2\nname: web\nversion: 1.0.0\n")


def entry(name: str, *, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.size = kind, link, size
    return made


def packed(files: Iterable[tuple[str, bytes]] = (CHART,), odd: Iterable[tarfile.TarInfo] = ()) -> bytes:
    room = io.BytesIO()
    with tarfile.open(fileobj=room, mode="w:gz") as tar:
        for name, content in files:
            tar.addfile(entry(name, size=len(content)), io.BytesIO(content))
        for one in odd:
            tar.addfile(one)
    return room.getvalue()


def unpack(folder: Path, data: bytes) -> Path:
    (folder / "chart.tgz").write_bytes(data)
    return archive.unpack(folder / "chart.tgz", folder / "out")


def refused(folder: Path, data: bytes) -> str:
    with pytest.raises(ShimError) as caught:
        unpack(folder, data)
    assert sorted(path.name for path in folder.iterdir()) == ["chart.tgz"]  # nothing of it stays
    return str(caught.value)


def test_a_chart_is_unpacked_for_this_user_alone(tmp_path: Path) -> None:
    top = unpack(tmp_path, packed([CHART, ("web/templates/deep/a.yaml", b"a: 1\n")]))
    assert top == tmp_path / "out" / "web"
    assert (top / "templates/deep/a.yaml").read_bytes() == b"a: 1\n"
    assert (top / "Chart.yaml").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "odd",
    [
        entry("../../etc/passwd"),
        entry("/etc/passwd"),
        entry("web/../../x"),
        entry("web\\..\\x"),
        entry("web/link", kind=tarfile.SYMTYPE, link="/etc"),
        entry("web/hard", kind=tarfile.LNKTYPE, link="../../x"),
        entry("web/pipe", kind=tarfile.FIFOTYPE),
        entry("web/null", kind=tarfile.CHRTYPE),
        entry("web/" + "d/" * 40 + "x"),
        entry("web/" + "x" * 600),
    ],
    ids=lambda one: one.name[:20],
)
def test_what_climbs_or_is_no_file_is_refused_by_name(tmp_path: Path, odd: tarfile.TarInfo) -> None:
    assert repr(odd.name)[1:20] in refused(tmp_path, packed(odd=[odd]))
    assert not (tmp_path.parent / "x").exists()


def test_a_file_that_comes_twice_or_under_a_file_is_refused(tmp_path: Path) -> None:
    assert "'web/Chart.yaml' twice" in refused(tmp_path, packed([CHART, CHART]))
    under = [CHART, ("web/a", b""), ("web/a/b", b"")]
    assert "'web/a/b' twice, or below a file of that name" in refused(tmp_path, packed(under))
    assert "'web/a/b/c/d' twice, or below a file" in refused(tmp_path, packed([*under[:2], ("web/a/b/c/d", b"")]))
    assert "'web/a' twice" in refused(tmp_path, packed(under[:2], odd=[entry("web/a", kind=tarfile.DIRTYPE)]))
    assert "'web/a' twice" in refused(tmp_path, packed([CHART, ("web/a/b", b""), ("web/a", b"")]))


def test_what_a_disk_cannot_hold_is_refused(tmp_path: Path) -> None:
    assert "File name too long" in refused(tmp_path, packed([CHART, ("web/" + "x" * 300, b"")]))
    (tmp_path / "chart.tgz").unlink()
    with pytest.raises(ShimError, match="cannot be unpacked: No such file"):
        archive.unpack(tmp_path / "chart.tgz", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_holes_are_no_way_around_the_budget(tmp_path: Path) -> None:
    """A sparse file: little in the archive, much on the disk."""

    def with_holes(size: str) -> bytes:
        sparse = entry("web/zeros")
        sparse.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": size, "GNU.sparse.name": "web/zeros"}
        room = io.BytesIO()
        with tarfile.open(fileobj=room, mode="w:gz", format=tarfile.PAX_FORMAT) as tar:
            tar.addfile(entry(CHART[0], size=len(CHART[1])), io.BytesIO(CHART[1]))
            tar.addfile(sparse)
        return room.getvalue()

    assert "'web/zeros', which is no ordinary file" in refused(tmp_path, with_holes(str(200 << 20)))
    assert "helm package" in refused(tmp_path, with_holes("much"))


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_UNPACKED", 3 << 20)
    assert "unpacks to more than" in refused(tmp_path, packed([CHART, ("web/zeros", bytes(4 << 20))]))  # more than the cap
    monkeypatch.setattr(archive, "MAX_UNPACKED", 64 << 20)
    assert "times its size" in refused(tmp_path, packed([CHART, ("web/zeros", bytes(8 << 20))]))  # a thousandfold


def test_a_header_that_claims_much_is_not_believed(tmp_path: Path) -> None:
    # A PAX header of 40 MiB: tarfile reads headers into memory.
    big = entry("web/x")
    big.pax_headers = {"comment": "x" * (40 << 20)}
    room = io.BytesIO()
    with tarfile.open(fileobj=room, mode="w:gz", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(big)
    assert "times its size" in refused(tmp_path, room.getvalue())


def test_too_many_files_and_too_large_an_archive_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_FILES", 10)
    assert "more than 10 files" in refused(tmp_path, packed([CHART, *((f"web/{at}", b"") for at in range(10))]))
    monkeypatch.setattr(archive, "MAX_PACKED", 20)
    assert "20 are the most" in refused(tmp_path, packed())


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "helm package"),
        (b"PK\x03\x04 a zip", "helm package"),
        (gzip.compress(b"no tar at all" * 100), "helm package"),
        (packed([("Chart.yaml", b"name: x")]), "no single folder"),
        (packed([("web/values.yaml", b"")]), "no single folder"),
        (packed([CHART, ("other/Chart.yaml", b"")]), "no single folder"),
        (packed()[:-30], "helm package"),
        (zlib.compress(b"x" * 100), "helm package"),
    ],
    ids=["nothing", "a zip", "no tar", "no folder", "no Chart.yaml", "two folders", "cut off", "no gzip"],
)
def test_what_is_no_chart_is_said_to_be_none(tmp_path: Path, data: bytes, said: str) -> None:
    assert said in refused(tmp_path, data)


def test_charts_inside_are_unpacked_too_and_share_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = packed([("db/Chart.yaml", b"name: db"), ("db/templates/a.yaml", b"")])
    top = unpack(tmp_path, packed([CHART, ("web/charts/db-1.0.0.tgz", inner)]))
    assert (top / "charts/db/templates/a.yaml").is_file()
    assert not list(top.rglob("*.tgz"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["web"]
    (tmp_path / "a").mkdir()
    files = [CHART, ("web/charts/db-1.0.0.tgz", inner), ("web/charts/db-1.0.0.unpacked/README", b"")]
    assert (unpack(tmp_path / "a", packed(files)) / "charts/db/Chart.yaml").is_file()
    (tmp_path / "d").mkdir()
    assert "called like an archive, 'x.tgz'" in refused(tmp_path / "d", packed([CHART, ("web/charts/x.tgz/a", b"")]))
    nested = inner
    for _ in range(5):
        nested = packed([("db/Chart.yaml", b""), ("db/charts/db.tgz", nested)])
    (tmp_path / "b").mkdir()
    assert "levels deep" in refused(tmp_path / "b", packed([CHART, ("web/charts/db.tgz", nested)]))
    bomb = packed([("db/Chart.yaml", b""), ("db/zeros", bytes(900 << 10))])
    monkeypatch.setattr(archive, "MAX_UNPACKED", 2 << 20)
    (tmp_path / "c").mkdir()
    many = [CHART, *((f"web/charts/db{at}/charts/db.tgz", bomb) for at in range(3))]
    assert "unpacks to more than" in refused(tmp_path / "c", packed(many))
