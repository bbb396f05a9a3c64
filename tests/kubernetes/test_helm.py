"""Charts, rendered by the real helm."""

import asyncio
import errno
import hashlib
import io
import json
import os
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pytest

from cluster_controller import durable
from cluster_shim import contract
from cluster_shim.contract import ShimError
from cluster_shim.kubernetes import helm
from cluster_shim.kubernetes.apply import Facts
from cluster_shim.kubernetes.helm import Helm

FACTS = Facts("v1.34.2", "shop")
CHART = "apiVersion: v2\nname: web\nversion: 1.0.0\n"
CONFIG = """apiVersion: v1
kind: ConfigMap
metadata:
  name: {{ .Release.Name }}
  namespace: {{ .Release.Namespace }}
data:
  size: {{ .Values.size | quote }}
  version: {{ .Capabilities.KubeVersion.Version }}
  date: 2026-11-21
  ports: 80:80
  random: {{ randAlphaNum 10 }}
"""


def chart(folder: Path, files: dict[str, str] | None = None, *, ignore_hooks: bool = False, values: Any = None) -> contract.Chart:
    files = {"Chart.yaml": CHART, "values.yaml": "size: 1\n"} | (files or {})
    room = io.BytesIO()
    with tarfile.open(fileobj=room, mode="w:gz") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"web/{name}")
            entry.size = len(text.encode())
            tar.addfile(entry, io.BytesIO(text.encode()))
    path = folder / "web.tgz"
    path.write_bytes(room.getvalue())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return contract.Chart(path=str(path), sha256=digest, values=json.dumps(values or {}).encode(), ignore_hooks=ignore_hooks)


def render(folder: Path, made: contract.Chart, facts: Facts = FACTS) -> list[dict[str, Any]]:
    component = contract.Component(name="front", replicas=1, revision="", chart=made)
    work = contract.Work(uid="u", name="shop", namespace="shop", origin="root", version=1, components=(component,))
    return asyncio.run(Helm(folder / "kept").render(work, component, facts))


def refused(folder: Path, made: contract.Chart) -> str:
    with pytest.raises(ShimError) as caught:
        render(folder, made)
    assert not list((folder / "kept").glob("*"))  # no rendering, and nothing unpacked
    return str(caught.value)


def test_a_chart_becomes_objects_with_its_values(tmp_path: Path) -> None:
    crd = "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: wheels.x.dev}\n"
    found = render(tmp_path, chart(tmp_path, {"templates/a.yaml": CONFIG, "crds/c.yaml": crd}, values={"size": 7}))
    assert [item["kind"] for item in found] == ["CustomResourceDefinition", "ConfigMap"]
    data = found[1]["data"]
    assert found[1]["metadata"]["namespace"] == "shop"
    assert found[1]["metadata"]["name"].startswith("shop-front-")
    assert (data["size"], data["version"], data["date"], data["ports"]) == ("7", "v1.34.2", "2026-11-21", "80:80")


def test_a_rendering_is_kept_so_that_nothing_random_changes(tmp_path: Path) -> None:
    made = chart(tmp_path, {"templates/a.yaml": CONFIG})
    first = render(tmp_path, made)
    Path(made.path).unlink()  # not even the archive is needed
    assert render(tmp_path, made) == first
    (kept,) = (tmp_path / "kept").iterdir()
    assert kept.stat().st_mode & 0o777 == 0o600
    kept.write_bytes(b"broken")
    with pytest.raises(ShimError, match="archive is not there"):
        render(tmp_path, made)


def test_a_data_folder_that_was_named_from_where_the_controller_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = chart(tmp_path, {"templates/a.yaml": CONFIG})
    monkeypatch.chdir(tmp_path)
    assert len(render(Path(), made)) == 1


def test_no_more_renderings_are_kept_than_a_site_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(helm, "MAX_KEPT", 3)
    for number in range(5):
        helm._keep(tmp_path / "kept" / f"{number}.json", [{"n": number}])
        os.utime(tmp_path / "kept" / f"{number}.json", (number, number))
    assert sorted(path.stem for path in (tmp_path / "kept").iterdir()) == ["2", "3", "4"]


def test_helm_s_own_words_say_what_is_wrong(tmp_path: Path) -> None:
    said = refused(tmp_path, chart(tmp_path, {"templates/bad.yaml": "a: {{ .Values.size | nosuch }}\n"}))
    assert said.startswith("chart web does not render: ") and 'function "nosuch" not defined' in said and "templates/bad.yaml" in said
    assert str(tmp_path) not in said and helm.ROOM not in said
    said = refused(tmp_path, chart(tmp_path, {"templates/a.yaml": '{{ required "size2 is needed" .Values.size2 }}'}))
    assert "size2 is needed" in said
    said = refused(tmp_path, chart(tmp_path, {"values.schema.json": '{"properties": {"size": {"type": "string"}}}'}))
    assert "schema" in said and "size" in said


def test_a_missing_dependency_is_not_fetched(tmp_path: Path) -> None:
    needing = CHART + "dependencies:\n  - {name: db, version: 1.0.0, repository: 'https://127.0.0.1:9/charts'}\n"
    said = refused(tmp_path, chart(tmp_path, {"Chart.yaml": needing}))
    assert "missing in charts/ directory: db" in said


HOOK = "apiVersion: batch/v1\nkind: Job\nmetadata:\n  name: migrate\n  annotations: {helm.sh/hook: 'HOOK'}\n"


def test_hooks_are_refused_by_name_unless_they_are_to_be_left_out(tmp_path: Path) -> None:
    templates = {"templates/hook.yaml": HOOK.replace("HOOK", "pre-install,pre-upgrade"), "templates/a.yaml": CONFIG}
    said = refused(tmp_path, chart(tmp_path, templates))
    assert "Job migrate" in said and "pre-install,pre-upgrade" in said and "hooks: Ignore" in said
    assert [item["kind"] for item in render(tmp_path, chart(tmp_path, templates, ignore_hooks=True))] == ["ConfigMap"]
    tests = {"templates/test.yaml": HOOK.replace("HOOK", "test"), "templates/a.yaml": CONFIG}
    assert [item["kind"] for item in render(tmp_path, chart(tmp_path, tests))] == ["ConfigMap"]


LOOKUP = '{{ (lookup "v1" "Secret" "a" "b").data | toJson | quote }}'


def with_line(line: str) -> str:
    return CONFIG + f"  x: {line}\n"


def test_lookups_are_refused_by_name_unless_they_are_to_be_left_out(tmp_path: Path) -> None:
    deep = {"templates/deep/l.yaml": with_line(LOOKUP)}
    said = refused(tmp_path, chart(tmp_path, deep))
    assert said.startswith("chart web: web/templates/deep/l.yaml looks up objects of the cluster") and "hooks: Ignore" in said
    inside = {
        "templates/a.yaml": with_line('{{ include "secret" . }}'),
        "charts/db/Chart.yaml": CHART.replace("web", "db"),
        "charts/db/templates/_h.tpl": '{{ define "secret" }}' + LOOKUP + "{{ end }}",
    }
    assert "web/charts/db/templates/_h.tpl looks up" in refused(tmp_path, chart(tmp_path, inside))
    (found,) = render(tmp_path, chart(tmp_path, deep, ignore_hooks=True))
    assert found["data"]["x"] == "null"


@pytest.mark.parametrize("where", ["the chart's values", "the Application's values", "a file", "a string"])
def test_a_lookup_that_is_no_template_s_own_is_refused_too(tmp_path: Path, where: str) -> None:
    """What `tpl` makes of text is known only when it is rendered."""
    files = {"templates/a.yaml": with_line("{{ tpl .Values.text . }}"), "values.yaml": "size: 1\ntext: none\n"}
    values = {}
    match where:
        case "the chart's values":
            files["values.yaml"] = f"size: 1\ntext: '{LOOKUP}'\n"
        case "the Application's values":
            values = {"text": LOOKUP}
        case "a file":
            files |= {"templates/a.yaml": with_line('{{ tpl (.Files.Get "f.txt") . }}'), "f.txt": LOOKUP}
        case "a string":
            files["templates/a.yaml"] = with_line('{{ tpl (printf "{{ %s `v1` `Secret` `a` `b` }}" (list "look" "up" | join "")) . }}')
    assert "web/templates/a.yaml looks up" in refused(tmp_path, chart(tmp_path, files, values=values))


@pytest.mark.parametrize(
    "line",
    [
        "{{ .Values.lookup | quote }}",
        '{{ "lookup" }}',
        "a{{/* lookup */}}",
        "lookup",
        "{{ $lookup := 1 }}{{ $lookup }}",
        "a{{ if .Values.never }}" + LOOKUP + "{{ end }}",  # it is not reached
    ],
)
def test_what_only_looks_like_a_lookup_is_none(tmp_path: Path, line: str) -> None:
    assert len(render(tmp_path, chart(tmp_path, {"templates/a.yaml": with_line(line)}))) == 1


def test_an_archive_that_is_another_one_is_not_rendered(tmp_path: Path) -> None:
    made = chart(tmp_path)
    Path(made.path).write_bytes(b"other")
    assert "not the one that was published" in refused(tmp_path, made)


def test_a_template_without_end_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(helm, "RENDER_SECONDS", 3.0)
    endless = "{{ range until 100000000 }}{{ range until 100000 }}{{ end }}{{ end }}"
    said = refused(tmp_path, chart(tmp_path, {"templates/a.yaml": endless}))
    assert "not rendered within 3 s" in said or "does not render" in said  # time, or its memory


def test_an_output_without_measure_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(helm, "MAX_OUTPUT", 1000)
    much = CONFIG + "  x: {{ repeat 5000 `y` }}\n"
    assert "renders to more than" in refused(tmp_path, chart(tmp_path, {"templates/a.yaml": much}))


@pytest.mark.parametrize(("stream", "said"), [("1", "renders to more than 16 MiB"), ("2", "more than 64 KiB of complaints")])
def test_a_helm_that_prints_without_end_is_ended_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: str, said: str) -> None:
    """Not when its minute is over, because the other of its two streams says nothing and stays open."""
    pid, fake = tmp_path / "pid", tmp_path / "helm"
    fake.write_text(f"#!/bin/sh\necho $$ > {pid}\nPATH=/usr/bin:/bin\nexec yes >&{stream}\n", encoding="ascii")
    fake.chmod(0o700)
    monkeypatch.setattr(helm, "find_helm", lambda: str(fake))
    monkeypatch.setattr(helm, "RENDER_SECONDS", 3600.0)
    assert said in refused(tmp_path, chart(tmp_path))
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text(encoding="ascii")), 0)


def test_a_disk_that_takes_nothing_is_the_chart_s_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    made = chart(tmp_path, {"templates/a.yaml": CONFIG})
    with monkeypatch.context() as patched:
        patched.setattr(tempfile, "mkdtemp", full)
        assert "cannot be rendered: No space left on device" in refused(tmp_path, made)
    with monkeypatch.context() as patched:
        patched.setattr(durable, "write", full)
        assert len(render(tmp_path, made)) == 1  # what is rendered is applied, kept or not
    assert not list((tmp_path / "kept").iterdir())


def test_what_a_killed_process_left_goes_at_the_next_start(tmp_path: Path) -> None:
    left = tmp_path / "kept" / f"{helm.ROOM}abc" / "chart"
    left.mkdir(parents=True)
    render(tmp_path, chart(tmp_path, {"templates/a.yaml": CONFIG}))
    assert not left.parent.exists()


def test_two_that_clear_at_once_do_not_meet(tmp_path: Path) -> None:
    helm._keep(tmp_path / "kept" / "1.json", [])
    (tmp_path / "kept" / "gone.json").symlink_to("nowhere")  # as one that was there when the folder was read
    helm._keep(tmp_path / "kept" / "2.json", [])
    assert (tmp_path / "kept" / "2.json").exists()


LAUGHS = "".join(f"b{n}: &b{n} [{', '.join(['*' + ('a' if n == 0 else f'b{n - 1}')] * 20)}]\n" for n in range(8))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "no YAML"),
        ("just text", "no object"),
        ("kind: ConfigMap\nmetadata: {name: a}", "lacks apiVersion"),
        ("apiVersion: v1\nkind: ConfigMap\nmetadata: {generateName: a}", "lacks apiVersion, kind or metadata.name"),
        (
            "a: &a [x, x]\n" + "".join(f"b{n}: &b{n} [{', '.join(['*' + ('a' if n == 0 else f'b{n - 1}')] * 20)}]\n" for n in range(8)),
            "values",
        ),
        ("a: " + "[" * 300 + "]" * 300, "levels"),
        ("a: !!python/object/apply:os.system [x]", "no YAML"),
    ],
)
def test_output_that_is_nothing_to_apply(text: str, said: str) -> None:
    with pytest.raises(ShimError, match=said):
        helm.read_documents(text.encode(), "web")


def test_documents_are_read_as_kubectl_reads_them() -> None:
    text = "apiVersion: v1\nkind: List\nitems:\n"
    text += "- {apiVersion: v1, kind: A, metadata: {name: a}, x: on, y: 012, z: 1e3, t: 1:30, n: ~, 1: b}\n"
    (found,) = helm.read_documents(text.encode(), "web")
    assert {key: found[key] for key in "xyztn1"} == {"x": True, "y": 10, "z": 1000.0, "t": "1:30", "n": None, "1": "b"}


def test_helm_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(helm.sysconfig, "get_path", lambda name: "/nonexistent")
    monkeypatch.setattr(helm.shutil, "which", lambda name: None)
    with pytest.raises(ShimError, match="banyan-edge\\[kubernetes\\]"):
        helm.find_helm()
