"""Documents that an application needs travel beside its Work, once for all who need them, and leave with the last."""

import asyncio
from pathlib import Path

import msgspec

from cluster_controller.store import Key

from .tree import Site, Tree, application, component, delete_application, put_application


async def write(site: Site, kind: str, name: str, **fields: object) -> str:
    uid = f"{kind}-{site.name}-{name}".lower()
    document = {"kind": kind, "metadata": {"name": name, "namespace": "default", "uid": uid}, **fields}
    await site.store.commit(lambda tx: tx.put(Key("own", kind, "default", name), msgspec.json.encode(document), uid=uid))
    return uid


def needs() -> dict[str, object]:
    """A component that names a document in each of the ways there are."""
    variable = {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "one", "key": "a"}}}
    secret = {"name": "B", "valueFrom": {"secretKeyRef": {"name": "sealed", "key": "b"}}}
    return component(
        "serve",
        env=[variable, secret],
        envFrom=[{"configMapRef": {"name": "whole"}}, {"secretRef": {"name": "maybe", "optional": True}}],
        files=[{"path": "f", "configMap": {"name": "one"}}, {"path": "g", "secret": {"name": "sealed"}}],
    )


def delivered(site: Site, child: Site) -> set[tuple[str, str]]:
    space = f"down/{child.uid}"
    found = ((kind, stored.uid) for kind in ("Model", "ConfigMap", "Secret") for stored in site.store.list(space, kind))
    return set(found)


def test_an_application_waits_by_name_for_what_is_missing_and_gets_it_beside_its_work(tmp_path: Path) -> None:
    async def play() -> None:
        tree = Tree(tmp_path)
        root = await tree.add("root")
        edge = await tree.add("edge", "root", 1000)
        try:
            uid = await put_application(root, "first", 0, [needs()])
            await tree.quiet()
            status = application(root, "first").status  # type: ignore[union-attr]
            assert status.conditions[0].message == (
                "waits for ConfigMap default/one, Secret default/sealed, ConfigMap default/whole: create it or correct the name"
            )
            assert (tree.total(uid), delivered(root, edge)) == (0, set())
            one = await write(root, "ConfigMap", "one", data={"a": "1"})
            sealed = await write(root, "Secret", "sealed", data={"b": "Mg=="})
            whole = await write(root, "ConfigMap", "whole", data={})
            await tree.quiet()
            everything = {("ConfigMap", one), ("Secret", sealed), ("ConfigMap", whole)}
            assert (tree.total(uid), delivered(root, edge)) == (1, everything)
            maybe = await write(root, "Secret", "maybe", data={})  # optional: started without it, taken when it comes
            await tree.quiet()
            assert delivered(root, edge) == everything | {("Secret", maybe)}
            await write(root, "ConfigMap", "one", data={"a": "2"})
            await tree.quiet()
            changed = edge.store.get(Key("desired", "ConfigMap", "", one))
            assert changed is not None
            assert b'"a":"2"' in changed.document
            second = await put_application(root, "second", 0, [component("serve", files=[{"path": "f", "configMap": {"name": "one"}}])])
            await tree.quiet()
            await tree.crash("root")  # who needs what is read from the store again
            await delete_application(root, "first")
            await tree.quiet()
            assert (tree.total(second), delivered(root, edge)) == (1, {("ConfigMap", one)})
            await put_application(root, "second", 0, [component("serve")])
            await tree.quiet()
            assert (tree.total(second), delivered(root, edge)) == (1, set())
        finally:
            await tree.close()

    asyncio.run(play())


def test_a_delivered_model_is_named_by_its_origin(tmp_path: Path) -> None:
    async def play() -> None:
        tree = Tree(tmp_path)
        root = await tree.add("root")
        region = await tree.add("region", "root")
        edge = await tree.add("edge", "region", 1000)
        try:
            model = await write(root, "Model", "emotion", spec={"versions": []})
            part: dict[str, object] = {"name": "serve", "model": {"name": "emotion"}, "replicas": 1}
            above = await put_application(root, "above", 0, [part])
            below = await put_application(region, "below", 0, [part | {"model": {"name": "emotion.root"}}])
            other = await put_application(region, "other", 0, [part | {"model": {"name": "emotion.elsewhere"}}])
            await tree.quiet()
            assert (tree.total(above), tree.total(below), tree.total(other)) == (1, 1, 0)
            assert delivered(region, edge) == {("Model", model)}
            waits = application(region, "other").status.conditions[0].message  # type: ignore[union-attr]
            assert "Model default/emotion.elsewhere" in waits
        finally:
            await tree.close()

    asyncio.run(play())


def test_a_chart_travels_as_its_model_does(tmp_path: Path) -> None:
    async def play() -> None:
        tree = Tree(tmp_path)
        root = await tree.add("root")
        edge = await tree.add("edge", "root", 1000)
        try:
            chart: dict[str, object] = {"name": "shop", "helm": {"chart": {"name": "web"}}, "replicas": 1}
            await put_application(root, "shop", 0, [chart])
            await tree.quiet()
            assert "waits for Model default/web" in application(root, "shop").status.conditions[0].message  # type: ignore[union-attr]
            model = await write(root, "Model", "web", spec={"versions": []})
            await tree.quiet()
            assert delivered(root, edge) == set(), "no cluster here runs charts"
            part = component("serve") | {"command": [], "model": {"name": "web"}}
            await put_application(root, "model", 0, [part])
            await tree.quiet()
            assert delivered(root, edge) == {("Model", model)}
        finally:
            await tree.close()

    asyncio.run(play())
