"""YAML as people write it, and what is refused in it."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banyanctl import manifests
from cluster_controller.errors import BanyanError, InvalidInput, NotFound

OBJECT = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: %s}\n"
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]))),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text("abc2024-: ", min_size=1), inner, max_size=3)),
    max_leaves=10,
)


@given(values.filter(lambda value: value is not None))
def test_what_is_printed_reads_back(value: Any) -> None:
    assert manifests.loads(manifests.dumps(value)) == [value]


def test_a_date_stays_text_and_json_is_yaml() -> None:
    assert manifests.loads("a: 2024-05-01\nb: 2024-05-01T10:00:00Z") == [{"a": "2024-05-01", "b": "2024-05-01T10:00:00Z"}]
    assert manifests.loads('{"a": [1, 2]}') == [{"a": [1, 2]}]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3\n", "'a' is given twice"),
        ("a: [1", "not valid YAML"),
        ("a: !!python/object/apply:os.system [ls]", "not valid YAML"),
        ("a\x00b", "not valid YAML"),
        (
            "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
            + "".join(f"{n}: &{n} [{','.join([f'*{p}'] * 10)}]\n" for p, n in zip("abcdef", "bcdefg", strict=True)),
            "values",
        ),
        ("[" * 5000 + "]" * 5000, "nested too deeply"),
    ],
)
def test_what_no_manifest_is_gets_refused(text: str, said: str) -> None:
    with pytest.raises(InvalidInput, match=said) as refused:
        manifests.loads(text, "app.yaml")
    assert "app.yaml" in str(refused.value)


def test_files_folders_and_lists_are_unfolded_in_order(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text(OBJECT % "two" + "---\n" + OBJECT % "three")
    (tmp_path / "a.json").write_text(
        '{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"v1","kind":"Secret","metadata":{"name":"one"}}]}'
    )
    (tmp_path / "notes.txt").write_text("not a manifest")
    found = list(manifests.read([str(tmp_path)]))
    assert [document["metadata"]["name"] for _, document in found] == ["one", "two", "three"]
    assert found[2][0].endswith("b.yaml, document 2")


@pytest.mark.parametrize(
    "text", ["kind: A\n", "just text", "apiVersion: v1\nkind: A\n", "apiVersion: v1\nkind: A\nmetadata: {}\n", "- 1\n"]
)
def test_what_is_no_object_is_named_with_its_place(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.yaml").write_text(OBJECT % "fine" + "---\n" + text)
    with pytest.raises(InvalidInput, match=r"x\.yaml, document 2"):
        list(manifests.read([str(tmp_path / "x.yaml")]))


def test_a_file_that_cannot_be_read_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="does not exist"):
        list(manifests.read([str(tmp_path / "none.yaml")]))
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9\n")
    with pytest.raises(InvalidInput, match="not UTF-8"):
        list(manifests.read([str(tmp_path / "latin.yaml")]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(BanyanError, match="holds no"):
        list(manifests.read([str(tmp_path / "empty")]))
    with (tmp_path / "big.yaml").open("wb") as file:
        file.truncate(manifests.FILE_LIMIT_BYTES + 1)
    with pytest.raises(InvalidInput, match="larger than"):
        list(manifests.read([str(tmp_path / "big.yaml")]))
