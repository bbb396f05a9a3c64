"""`banyan join TOKEN --print-manifest`: all that makes a cluster a member, as one file for `kubectl apply -f -`.

The files beside this module are the chart `helm/banyan-edge` as it renders (`python -m tools.charts` keeps them so), with a mark in each
place where sites differ. Here the marks are replaced, as text: the comments, and with them the reason of every right, reach the person
who applies it. Nothing of helm is needed.
"""

import json
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version as installed
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

from msgspec import Struct

from banyanctl import arguments
from cluster_controller import config
from cluster_controller.errors import InvalidInput
from cluster_controller.identity import token as tokens

RELEASE = "banyan-edge"  # what everything is called
DEFAULT_NAMESPACE = "banyan-system"
SHIMS = ("kubernetes", "k3s")
PROFILES = ("full", "namespaced")
IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,511}")
SEPARATOR = "\n---\n"

# Marks: valid where they stand, and found nowhere else.
NAME = "zz-name-zz"
NAMESPACE = "zz-namespace-zz"
TARGET = "zz-target-zz"
TOKEN = "banyan1zztokenzz"  # noqa: S105 (a mark)
SHIM = "k3s"
IMAGE_PARTS = ("zz-image-zz", "zz-tag-zz")
WHOLE_IMAGE = ":".join(IMAGE_PARTS)
FILES_URL = f"https://{RELEASE}-files.{NAMESPACE}.svc:8444"
PAIR = ("zz-key-zz", "zz-value-zz")
PROXY = "http://zz-proxy-zz"
STORAGE_CLASS = "zz-storage-class-zz"
PORT = 64999


def file_name(profile: str) -> str:
    return f"edge-{profile}.yaml"


def marked_values(profile: str) -> dict[str, Any]:
    """Values of the chart, for the file of a profile."""
    return {
        "cluster": {"name": NAME, "labels": dict([PAIR]), "shim": SHIM, "kubernetes": dict([PAIR])},
        "join": {"token": TOKEN},
        "proxy": PROXY,
        "image": {"repository": IMAGE_PARTS[0], "tag": IMAGE_PARTS[1]},
        "rights": {"profile": profile, "namespaces": [TARGET] if profile == "namespaced" else []},
        "persistence": {"storageClass": STORAGE_CLASS},
        "networkPolicy": {"parentPorts": [PORT]},
    }


class Wanted(Struct, frozen=True, kw_only=True):
    """What differs from site to site."""

    token: str
    name: str
    image: str = ""  # of this version, from nowhere in particular
    namespace: str = DEFAULT_NAMESPACE
    shim: str = "kubernetes"
    profile: str = "full"  # or namespaced
    targets: tuple[str, ...] = ()  # namespaces of Applications, with profile namespaced
    labels: Mapping[str, str] = {}
    kubernetes: Mapping[str, str] = {}
    proxy: str = ""
    storage_class: str = ""


def write(wanted: Wanted) -> str:
    """The manifest. InvalidInput names what cannot be; a damaged token is refused as `join` refuses it."""
    word = "".join(wanted.token.split()).lower()
    addresses = tokens.decode(word).addresses
    _check(wanted)
    text = files("banyanctl").joinpath(file_name(wanted.profile)).read_text(encoding="utf-8")
    documents = text.rstrip("\n").split(SEPARATOR)
    documents = [made for document in documents for made in _for_targets(document, wanted.targets)]
    text = SEPARATOR.join([_head(wanted), *_namespace(wanted.namespace), *documents]) + "\n"
    text = _lines(text, f"{{port: {PORT}, ", [f"{{port: {port}, " for port in _ports(addresses, wanted.proxy)])
    text = _lines(text, STORAGE_CLASS, [wanted.storage_class] if wanted.storage_class else [])
    image = wanted.image or f"banyan-edge:{installed('banyan-edge')}"
    kubernetes = {"files_url": FILES_URL.replace(NAMESPACE, wanted.namespace), "worker_image": image, **wanted.kubernetes}
    for mark, value in (
        (f"files_url={FILES_URL},worker_image={WHOLE_IMAGE},{'='.join(PAIR)}", _pairs(kubernetes)),
        (WHOLE_IMAGE, image),
        ("=".join(PAIR), _pairs(wanted.labels)),
        (f"BANYAN_SHIM, value: {json.dumps(SHIM)}", f"BANYAN_SHIM, value: {json.dumps(wanted.shim)}"),
        (TOKEN, word),
        (PROXY, json.dumps(wanted.proxy)[1:-1]),
        (NAMESPACE, wanted.namespace),
        (NAME, wanted.name),
    ):
        text = text.replace(mark, value)
    return text


def _check(wanted: Wanted) -> None:
    """Whatever is put into the text is such that it can only be what it is meant to be."""
    arguments.cluster_name(wanted.name, "--name")
    arguments.cluster_name(wanted.namespace, "--namespace")
    if wanted.shim not in SHIMS:
        raise InvalidInput(f"--shim {wanted.shim}: a manifest is for {' or '.join(SHIMS)}", "--shim")
    if wanted.profile not in PROFILES:
        raise InvalidInput(f"--profile {wanted.profile}: it is {' or '.join(PROFILES)}", "--profile")
    if (wanted.profile == "namespaced") != bool(wanted.targets):
        raise InvalidInput("--profile namespaced needs --applications-in NAMESPACE,..., and full takes none", "--applications-in")
    for target in wanted.targets:
        arguments.cluster_name(target, "--applications-in")
    if wanted.image and not IMAGE.fullmatch(wanted.image):
        raise InvalidInput(f"--image: {wanted.image!r} is no image; write REGISTRY/NAME:TAG or NAME@sha256:DIGEST", "--image")
    if wanted.storage_class:
        arguments.cluster_name(wanted.storage_class, "--storage-class")
    for option, pairs in (("--labels", wanted.labels), ("--kubernetes", wanted.kubernetes)):
        for text in (text for pair in pairs.items() for text in pair):
            if not text.isprintable() or {*',="\\'} & {*text}:
                raise InvalidInput(f"{option}: {text!r} holds a character that cannot stand there", option)
    if wanted.proxy:
        _proxy_port(wanted.proxy)


def _proxy_port(url: str) -> int:
    parts = urlsplit(url)
    try:
        if parts.scheme in ("http", "https") and parts.hostname and url.isprintable():
            return parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:  # a port that is none
        pass
    raise InvalidInput("--proxy: it is http://HOST:PORT, with user:password@ before the host where it needs them", "--proxy")


def _ports(addresses: Sequence[str], proxy: str) -> list[int]:
    """Where the controller dials: the parent, or the proxy on its behalf."""
    found = {config.split_address(address, "TOKEN")[1] for address in addresses}
    if proxy:
        found.add(_proxy_port(proxy))
    return sorted(found)


def _pairs(given: Mapping[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(given.items()))


def _lines(text: str, mark: str, values: Sequence[str]) -> str:
    """The line that has the mark, once for each value; without values it is left out."""
    made: list[str] = []
    for line in text.splitlines():
        made += [line.replace(mark, value) for value in values] if mark in line else [line]
    return "\n".join(made) + "\n"


def _for_targets(document: str, targets: Sequence[str]) -> list[str]:
    return [document.replace(TARGET, target) for target in targets] if TARGET in document else [document]


def _head(wanted: Wanted) -> str:
    return f"""\
# {wanted.name} becomes a member of the tree when this is applied: kubectl apply -f -
# It holds a join token, which is a secret until it is used: keep this file to yourself, and out of version control.
# To remove the controller and keep its identity: kubectl --namespace {wanted.namespace} delete deployment {RELEASE}
# Applying a manifest made with another token changes nothing for a cluster that has joined."""


def _namespace(name: str) -> list[str]:
    """One of our own says that nothing in it needs privileges; one that may be somebody's is made where it is missing, no more."""
    if name in ("default", "kube-system"):
        return []
    made = f"apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}"
    if name == DEFAULT_NAMESPACE:
        made += "\n  labels: {pod-security.kubernetes.io/enforce: restricted}"
    return [made]
