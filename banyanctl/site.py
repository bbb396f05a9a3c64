"""`banyan init`, `join`, `run` and `leave`: what is done on the machine where a controller lives."""

import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from banyanctl import arguments, output, service, shims, systemd
from banyanctl.cli import examples, settings
from banyanctl.places import default_data
from cluster_controller import config
from cluster_controller.config import Config
from cluster_controller.errors import InvalidInput

ApiListen = Annotated[
    str | None, typer.Option("--api-listen", metavar="HOST:PORT", help="Where people and kubectl connect.", show_default="127.0.0.1:8443")
]
TunnelListen = Annotated[
    str | None,
    typer.Option("--tunnel-listen", metavar="HOST:PORT", help="Where children dial in; '' for none.", show_default="0.0.0.0:10000"),
]
Advertise = Annotated[
    str | None,
    typer.Option("--tunnel-advertise", metavar="HOST:PORT,...", help="Addresses that children dial.", show_default="this host's name"),
]
Labels = Annotated[list[str] | None, typer.Option("--labels", metavar="K=V", help="Labels of this site, for placement; may be repeated.")]
Kubeconfig = Annotated[
    str | None,
    typer.Option("--kubeconfig", metavar="FILE", help="With --shim kubernetes or k3s: the cluster to join.", show_default="as kubectl's"),
]
Context = Annotated[str | None, typer.Option("--context", help="Which context of the kubeconfig.", show_default="the current one")]
Kubernetes = Annotated[
    list[str] | None,
    typer.Option("--kubernetes", metavar="K=V", help="How that cluster is used: see `banyan run --help`; may be repeated."),
]
IfNew = Annotated[
    bool, typer.Option("--if-new", help="Change nothing where a cluster lives in the data folder already; its settings count then.")
]
Shim = Annotated[
    str | None, typer.Option("--shim", help="process, kubernetes, k3s, none, or the address of a shim.", show_default="process")
]
PrintManifest = Annotated[
    bool,
    typer.Option("--print-manifest", help="Join nothing here: print what makes a Kubernetes cluster the member, for kubectl apply -f -."),
]
Image = Annotated[
    str, typer.Option("--image", help="With --print-manifest: the image of the controller.", show_default="banyan-edge:VERSION")
]
Namespace = Annotated[str, typer.Option("--namespace", help="With --print-manifest: where the controller lives.")]
Profile = Annotated[str, typer.Option("--profile", help="With --print-manifest: its rights in that cluster, full or namespaced.")]
ApplicationsIn = Annotated[
    str, typer.Option("--applications-in", metavar="NAMESPACE,...", help="With --profile namespaced: where Applications may run.")
]
StorageClass = Annotated[
    str, typer.Option("--storage-class", help="With --print-manifest: of its volume.", show_default="the cluster's default")
]
TOKEN_LIMIT = 8192  # characters of a file with a token


def data_folder() -> Path:
    return Path(settings().data or default_data()).absolute()


def configuration(name: str, given: dict[str, Any]) -> Config:
    """The configuration of a controller that is made now: what was given, over what a banyan.toml there says."""
    chosen = {key: value for key, value in given.items() if value is not None}
    if isinstance(chosen.get("tunnel_advertise"), str):
        chosen["tunnel_advertise"] = [part.strip() for part in chosen["tunnel_advertise"].split(",") if part.strip()]
    for field in ("api_listen", "tunnel_listen"):
        if chosen.get(field):
            config.split_address(chosen[field], f"--{field.replace('_', '-')}")
    wanted = config.load(data_folder(), overrides={"name": arguments.cluster_name(name, "--name"), **chosen})
    shims.check(wanted)
    return wanted


def own_cluster(shim: str | None, kubeconfig: str | None, context: str | None, kubernetes: list[str] | None) -> dict[str, Any]:
    """Settings of the cluster that this controller is for. A path means the same wherever the controller is started later."""
    return {
        "shim": shim,
        "member_kubeconfig": str(Path(kubeconfig).absolute()) if kubeconfig else None,
        "member_context": context,
        "kubernetes": arguments.labels(kubernetes) if kubernetes else None,
    }


@examples("banyan init root", "banyan init hq --data /srv/banyan --tunnel-advertise hq.example.com:10000", "banyan init root --run")
def init(
    name: Annotated[str, typer.Argument(help="Name of the root cluster, a DNS label.")] = "root",
    api_listen: ApiListen = None,
    tunnel_listen: TunnelListen = None,
    tunnel_advertise: Advertise = None,
    labels: Labels = None,
    shim: Shim = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    kubernetes: Kubernetes = None,
    start: Annotated[bool, typer.Option("--run", help="Run the controller in the foreground right away.")] = False,
    if_new: IfNew = False,
) -> None:
    """Create the root of a new tree on this machine: its certificate authority, its identity, its settings."""
    if if_new and _lives_here():
        if start:
            run_controller(data_folder())
        return
    given = {"api_listen": api_listen, "tunnel_listen": tunnel_listen, "tunnel_advertise": tunnel_advertise}
    given |= own_cluster(shim, kubeconfig, context, kubernetes)
    wanted = configuration(name, {**given, "labels": arguments.labels(labels) if labels else None})
    made = service.init(wanted)
    told = {"name": wanted.name, "uid": made.uid, "data": str(wanted.data), "treeCa": made.tree_ca_digest}
    if start:
        output.note(f"created the tree of {wanted.name} in {wanted.data}")
        run_controller(wanted.data)
    output.emit(told, settings().output, lambda: _initialised(wanted))


def _initialised(made: Config) -> None:
    print(f"created the tree of {made.name} in {made.data}")
    flag = "" if made.data == default_data().absolute() else f" --data {made.data}"
    print(f"run it:       banyan run{flag}")
    print(f"let one join: banyan{flag} token create")


@examples(
    "banyan join banyan1… --name edge-1",
    "banyan join banyan1… --name edge-1 --labels tier=edge,zone=north --install",
    "banyan join banyan1… --name edge-1 --proxy http://proxy.example.com:3128",
    "banyan join banyan1… --name edge-k8s --shim kubernetes --kubeconfig ~/.kube/config --context site",
    "banyan join banyan1… --name edge-k8s --print-manifest --image registry.example.com/banyan-edge:1.0 | kubectl apply -f -",
)
def join(
    token: Annotated[
        str,
        typer.Argument(help="The token that `banyan token create` printed; - reads it from standard input, @FILE from a file."),
    ],
    name: Annotated[str, typer.Option("--name", help="Name of this cluster, a DNS label.")],
    labels: Labels = None,
    proxy: Annotated[
        str | None, typer.Option("--proxy", metavar="URL", help="HTTP(S) CONNECT proxy towards the parent.", show_default="HTTPS_PROXY")
    ] = None,
    api_listen: ApiListen = None,
    tunnel_listen: TunnelListen = None,
    tunnel_advertise: Advertise = None,
    shim: Shim = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    kubernetes: Kubernetes = None,
    install: Annotated[
        bool, typer.Option("--install", help="Write, enable and start a systemd unit instead of running in the foreground.")
    ] = False,
    user: Annotated[
        str, typer.Option("--user", help="With --install as root: who the controller and what it runs belong to.", show_default="root")
    ] = "",
    start: Annotated[bool, typer.Option("--run/--no-run", help="Run the controller once joined.")] = True,
    if_new: IfNew = False,
    print_manifest: PrintManifest = False,
    image: Image = "",
    namespace: Namespace = "banyan-system",
    profile: Profile = "full",
    applications_in: ApplicationsIn = "",
    storage_class: StorageClass = "",
) -> None:
    """Make this machine a member of a tree, and run its controller. Or, with --print-manifest, a Kubernetes cluster from within.

    Keys are made where the controller lives and never leave; running the same command twice is safe.
    """
    if print_manifest:
        if install or user or kubeconfig or context or api_listen or tunnel_listen or tunnel_advertise:
            raise InvalidInput("--print-manifest is for a controller inside the cluster: leave out what is about this machine")
        there = {"image": image, "namespace": namespace, "profile": profile, "storage_class": storage_class, "proxy": proxy or ""}
        _print_manifest(_word(token), name, shim or "kubernetes", labels or (), kubernetes or (), applications_in, there)
        return
    if if_new and _lives_here():
        if start:
            run_controller(data_folder())
        return
    given = {"proxy": proxy, "api_listen": api_listen, "tunnel_listen": tunnel_listen, "tunnel_advertise": tunnel_advertise}
    given |= own_cluster(shim, kubeconfig, context, kubernetes)
    wanted = configuration(name, {**given, "labels": arguments.labels(labels) if labels else None})
    word = _word(token)
    if install:
        systemd.require(wanted.data, user)
    elif user:
        raise InvalidInput("--user goes with --install: without it the controller belongs to whoever runs this", "--user")
    try:
        with output.progress("asking the parent") as say:
            joined = service.join(wanted, word, say)
    except KeyboardInterrupt:
        output.note(f"{wanted.name} has not joined yet; what began is kept, and the same command goes on with it")
        raise
    _joined(wanted, joined, install=install, user=user)
    if start and not install:
        run_controller(wanted.data)


def _print_manifest(
    word: str, name: str, shim: str, labels: Iterable[str], kubernetes: Iterable[str], applications_in: str, given: dict[str, str]
) -> None:
    from banyanctl import manifest

    text = manifest.write(
        manifest.Wanted(
            token=word,
            name=name,
            shim=shim,
            targets=tuple(filter(None, (part.strip() for part in applications_in.split(",")))),
            labels=arguments.labels(labels),
            kubernetes=arguments.labels(kubernetes, "--kubernetes"),
            **given,
        )
    )
    output.note("this holds a join token: whoever reads it before it is used can join in this cluster's place")
    print(text, end="")


def _word(token: str) -> str:
    """The token itself, wherever it was put."""
    word = token
    if token == "-":  # noqa: S105 (no password: the word for standard input)
        word = sys.stdin.readline()
    elif token.startswith("@"):
        try:
            with Path(token[1:]).open(encoding="utf-8", errors="replace") as file:
                word = file.read(TOKEN_LIMIT)
        except OSError as error:
            raise InvalidInput(
                f"{token[1:]} cannot be read ({error.strerror}): put the word there that `banyan token create` printed", "TOKEN"
            ) from error
    if not word.strip():
        raise InvalidInput("the token is empty; give the word that `banyan token create` printed", "TOKEN")
    return word


def _lives_here() -> bool:
    """Whether a cluster lives in the data folder; if so, that is said."""
    folder = data_folder()
    if not (folder / "identity" / "identity.json").exists():
        return False
    output.note(f"{config.load(folder).name} lives in {folder} already; nothing was changed")
    return True


def _joined(wanted: Config, joined: service.Joined, *, install: bool, user: str) -> None:
    told = {"name": joined.name, "uid": joined.uid, "parent": joined.parent, "data": str(wanted.data), "unit": ""}
    lines = [
        f"{joined.name} is a member below {joined.parent} ({'joined now' if joined.new else 'as before'}); its data is in {wanted.data}"
    ]
    if install:
        unit = systemd.install(joined.name, wanted.data, user)
        told["unit"] = str(unit)
        lines.append(f"its controller runs as {unit.name}; see: systemctl status {unit.name}, journalctl -u {unit.name} -f")
    say: Callable[[str], None] = print if install else output.note
    output.emit(told, settings().output, lambda: say("\n".join(lines)))


def run() -> NoReturn:
    """Run this machine's controller in the foreground. (Help is that of `banyan run --help`; see `banyanctl.run`.)"""
    run_controller(data_folder())


def run_controller(data: Path) -> NoReturn:
    """Become `banyan run`: a fresh interpreter, without all that this command has loaded."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", "banyanctl", "run", "--data", str(data)])


@examples("banyan leave", "banyan leave --yes --keep-applications --data /srv/banyan")
def leave(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    keep: Annotated[bool, typer.Option("--keep-applications", help="What runs here goes on running, on its own.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Leave even when the parent cannot be told, or clusters below lose their parent.")
    ] = False,
) -> None:
    """Take this machine out of its tree, whether its controller runs or not.

    The controller is stopped, the parent is told, applications end, the identity and the store are destroyed. Volumes and the
    model cache stay: they are the site's.
    """
    from banyanctl import leaving
    from banyanctl.events import configure

    configure("human", "error")  # what a running controller tells its log, a person has no use for here
    site = leaving.find(config.load(data_folder()))
    if not yes:
        output.ask(f"{site.name} leaves {site.parent}: {_consequences(site.running is not None, keep=keep)}. Go on?", "--yes")
    with output.progress(f"telling {site.parent}") as say:
        left = leaving.leave(site, keep_applications=keep, force=force, say=say)
    told = {
        "name": left.name,
        "parent": left.parent,
        "told": left.told,
        "controllerStopped": left.stopped,
        "applications": left.applications,
        "data": str(site.settings.data),
    }
    warning = "" if left.told else f"; it was not told: run `banyan cluster remove {left.name}` there"
    rest = {"ended": "its applications have ended", "kept": "its applications run on", "none": "what its cluster runs was left alone"}
    output.emit(told, settings().output, lambda: print(f"{left.name} has left {left.parent}, {rest[left.applications]}{warning}"))


def _consequences(running: bool, *, keep: bool) -> str:
    steps = ["its controller stops"] if running else []
    steps += ["its applications run on, unmanaged" if keep else "its applications end", "its identity and store are destroyed"]
    return ", ".join(steps) + "; volumes and models stay"
