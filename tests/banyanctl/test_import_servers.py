"""Files from servers that we did not write: S3 as moto has it, which checks who asks with botocore's signatures, and CNCF Distribution.

Each runs in a process of its own; what is in it was put there by another client (boto3), or by hand as its specification says.
"""

import base64
import hashlib
import json
import os
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils

from banyanctl import importing
from banyanctl.importing import Remote, bring, find
from cluster_controller.clock import wall
from cluster_controller.errors import Forbidden, NotFound
from cluster_controller.identity import certificates, keys
from tests.banyanctl.test_importing import LIMIT, Handler, no_sleep, quiet, server, sha
from tools import needs

PATIENCE = 60.0
WEIGHTS = os.urandom(3_000_000)
FILES = {"m/model.onnx": WEIGHTS, "m/labels/a b+ü.txt": b"labels", "m/empty": b"", **{f"m/part-{number}": b"x" for number in range(7)}}


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@contextmanager
def running(argv: list[str], port: int, folder: Path, **environment: str) -> Iterator[str]:
    """The program's address, once it answers there."""
    log = folder / "server.log"
    with log.open("wb") as said:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=os.environ | environment)
    try:
        end = time.monotonic() + PATIENCE
        while True:
            assert process.poll() is None and time.monotonic() < end, log.read_text(errors="replace")[-2000:]
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _ask(method: str, url: str, body: bytes, headers: Mapping[str, str]) -> Mapping[str, str]:
    with urllib.request.urlopen(urllib.request.Request(url, data=body, method=method, headers=dict(headers)), timeout=PATIENCE) as answer:
        return dict(answer.headers.items())


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


@contextmanager
def cutting(address: str, after: int, times: int) -> Iterator[tuple[str, list[int]]]:
    """A way to ``address`` on which the first ``times`` answers that are longer end after so many bytes; how many bytes each answer had."""
    host, _, port = address.partition(":")
    listening = socket.create_server(("127.0.0.1", 0))
    passed: list[int] = []
    left = times

    def carry(near: socket.socket) -> None:
        nonlocal left
        with near, socket.create_connection((host, int(port)), PATIENCE) as far:
            near.settimeout(PATIENCE)
            request = b""
            while b"\r\n\r\n" not in request:  # each request here has a connection of its own, and no body
                request += near.recv(65536)
            far.sendall(request)
            number = len(passed)
            passed.append(0)
            while data := far.recv(65536):
                if left and passed[number] + len(data) > after:
                    left -= 1
                    near.sendall(data[: after - passed[number]])
                    passed[number] = after
                    return
                passed[number] += len(data)
                near.sendall(data)

    def listen() -> None:
        while True:
            try:
                near, _ = listening.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=carry, args=(near,)))
            threads[-1].start()

    threads = [threading.Thread(target=listen)]
    threads[0].start()
    try:
        yield f"127.0.0.1:{listening.getsockname()[1]}", passed
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        for thread in threads:
            thread.join(PATIENCE)


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def brought(remotes: list[Remote], folder: Path) -> dict[str, bytes]:
    for remote in remotes:
        bring(remote, folder, LIMIT, quiet, no_sleep)
    return files_below(folder)


# --- S3 ------------------------------------------------------------------------------------------------------------------

FILL = """
import json, sys, boto3
endpoint, folder = sys.argv[1:]
def of(service):
    return boto3.client(service, endpoint_url=endpoint, region_name="eu-west-1", aws_access_key_id="x", aws_secret_access_key="y")
s3, iam, sts = of("s3"), of("iam"), of("sts")
s3.create_bucket(Bucket="models", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
for key, name in json.load(open(f"{folder}/keys.json")).items():
    s3.upload_file(f"{folder}/{name}", "models", key)
s3.put_object(Bucket="models", Key="m/folder/")
read = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": ["s3:GetObject", "s3:ListBucket"], "Resource": "*"}]}
anybody = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"AWS": "*"}}]}
iam.create_user(UserName="reader")
iam.put_user_policy(UserName="reader", PolicyName="read", PolicyDocument=json.dumps(read))
keys = iam.create_access_key(UserName="reader")["AccessKey"]
role = iam.create_role(RoleName="reads", AssumeRolePolicyDocument=json.dumps(anybody))["Role"]
iam.put_role_policy(RoleName="reads", PolicyName="read", PolicyDocument=json.dumps(read))
session = sts.assume_role(RoleArn=role["Arn"], RoleSessionName="now")["Credentials"]
print(json.dumps({
    "user": {"AWS_ACCESS_KEY_ID": keys["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": keys["SecretAccessKey"]},
    "session": {"AWS_ACCESS_KEY_ID": session["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": session["SecretAccessKey"],
                "AWS_SESSION_TOKEN": session["SessionToken"]},
}))
"""


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, dict[str, str]]]]:
    """Address and credentials of a server that lists three keys at a time, and by now knows who may read."""
    python, port, folder = str(needs.buckets()), free_port(), tmp_path_factory.mktemp("bucket")
    names = {key: f"file-{number}" for number, key in enumerate(FILES)}
    (folder / "keys.json").write_text(json.dumps(names))
    for key, name in names.items():
        (folder / name).write_bytes(FILES[key])
    argv = [python, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)]
    with running(argv, port, folder, MOTO_S3_DEFAULT_MAX_KEYS="3") as address:
        done = subprocess.run(
            [python, "-c", FILL, f"http://{address}", str(folder)], capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert done.returncode == 0, done.stderr
        _ask("POST", f"http://{address}/moto-api/reset-auth", b"0", {"Content-Type": "text/plain"})  # from now on it checks who asks
        yield address, json.loads(done.stdout)


def s3(address: str, keys: Mapping[str, str]) -> dict[str, str]:
    return {**keys, "AWS_REGION": "eu-west-1", "AWS_ENDPOINT_URL": f"http://{address}"}


@pytest.mark.needs("buckets")
@pytest.mark.parametrize("who", ["user", "session"])
def test_a_folder_of_a_bucket_comes_whole_however_many_pages_its_list_has(
    bucket: tuple[str, dict[str, dict[str, str]]], who: str, tmp_path: Path
) -> None:
    address, credentials = bucket
    found = brought(find("s3://models/m/", "", s3(address, credentials[who])), tmp_path)
    assert found == {key.removeprefix("m/"): content for key, content in FILES.items()}


@pytest.mark.needs("buckets")
def test_an_object_goes_on_after_cuts(bucket: tuple[str, dict[str, dict[str, str]]], tmp_path: Path) -> None:
    address, credentials = bucket
    with cutting(address, 1_000_000, 2) as (way, passed):
        (remote,) = find("s3://models/m/model.onnx", sha(WEIGHTS), s3(way, credentials["user"]))
        assert brought([remote], tmp_path) == {"model.onnx": WEIGHTS}
    assert len(passed) == 3 and sum(passed) < len(WEIGHTS) + 10_000


@pytest.mark.needs("buckets")
def test_who_may_not_read_is_told_and_nothing_comes(bucket: tuple[str, dict[str, dict[str, str]]], tmp_path: Path) -> None:
    address, credentials = bucket
    forged = credentials["user"] | {"AWS_SECRET_ACCESS_KEY": "forged" * 7}
    for known in (
        forged,
        credentials["user"] | {"AWS_ACCESS_KEY_ID": "AKIAUNKNOWN"},
        credentials["session"] | {"AWS_SESSION_TOKEN": "old"},
    ):
        with pytest.raises(Forbidden) as refused:
            find("s3://models/m/", "", s3(address, known))
        assert not any(secret in str(refused.value) for secret in known.values())
        with pytest.raises(Forbidden):
            brought(find("s3://models/m/model.onnx", sha(WEIGHTS), s3(address, known)), tmp_path)
    with pytest.raises(NotFound, match="NoSuchKey"):
        brought(find("s3://models/m/none", "", s3(address, credentials["user"])), tmp_path)
    with pytest.raises(NotFound, match="NoSuchBucket"):
        find("s3://none/m/", "", s3(address, credentials["user"]))
    assert not files_below(tmp_path)


# --- OCI -----------------------------------------------------------------------------------------------------------------

REPOSITORY = "models/emotion"
PASSWORD = "hush"


class Issuer:
    """Gives tokens as Distribution's specification says, to who knows the password and for what may be read or written."""

    def __init__(self) -> None:
        now = wall()
        self.key = ec.generate_private_key(ec.SECP256R1())
        signer = certificates.site_ca("tokens", keys.uid_of(self.key.public_key()), self.key, now - timedelta(days=1))
        self.certificate = certificates.pem(signer.certificate)
        self.der = signer.certificate.public_bytes(serialization.Encoding.DER)

    def token(self, scope: str, actions: tuple[str, ...]) -> str:
        kind, name, _ = scope.split(":")
        now = int(wall().timestamp())
        access = [{"type": kind, "name": name, "actions": list(actions)}]
        claims = {"iss": "issuer", "sub": "me", "aud": "registry", "nbf": now - 60, "iat": now, "exp": now + 600, "jti": "1"}
        head = {"typ": "JWT", "alg": "ES256", "x5c": [base64.b64encode(self.der).decode()]}
        text = f"{_url64(json.dumps(head).encode())}.{_url64(json.dumps(claims | {'access': access}).encode())}"
        r, s = utils.decode_dss_signature(self.key.sign(text.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{text}.{_url64(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"

    def answer(self, request: Handler) -> None:
        query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(request.path).query))
        basic = base64.b64encode(f"me:{PASSWORD}".encode()).decode()
        if request.headers.get("Authorization") != f"Basic {basic}":
            request.say(401)
        else:
            request.say(200, json.dumps({"token": self.token(query["scope"], ("pull",))}).encode())


def _url64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@contextmanager
def registry(folder: Path, auth: str = "") -> Iterator[str]:
    port = free_port()
    config = folder / "config.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: {folder / 'blobs'}}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}', secret: not-one}}\n{auth}"
    )
    with running([str(needs.registry()), "serve", str(config)], port, folder) as address:
        yield address


class Pusher:
    """Puts an artifact there with nothing but the distribution specification's requests."""

    def __init__(self, address: str, authorization: str = "") -> None:
        self._base = f"http://{address}/v2/{REPOSITORY}"
        self._headers = {"Authorization": authorization} if authorization else {}

    def _ask(self, method: str, url: str, body: bytes = b"", kind: str = "application/octet-stream") -> Mapping[str, str]:
        return _ask(method, url, body, {**self._headers, "Content-Type": kind})

    def blob(self, content: bytes, title: str = "") -> dict[str, Any]:
        place = self._ask("POST", f"{self._base}/blobs/uploads/")["Location"]
        self._ask("PUT", f"{place}{'&' if '?' in place else '?'}digest=sha256:{sha(content)}", content)
        named = {"annotations": {importing.TITLE: title}} if title else {}
        return {"mediaType": "application/octet-stream", "digest": f"sha256:{sha(content)}", "size": len(content), **named}

    def artifact(self, tag: str, files: Mapping[str, bytes]) -> str:
        """Its digest."""
        config = self.blob(b"{}") | {"mediaType": "application/vnd.oci.image.config.v1+json"}
        layers = [self.blob(content, title) for title, content in files.items()]
        manifest = {"schemaVersion": 2, "mediaType": importing.MANIFESTS[0], "config": config, "layers": layers}
        content = json.dumps(manifest).encode()
        self._ask("PUT", f"{self._base}/manifests/{tag}", content, importing.MANIFESTS[0])
        return hashlib.sha256(content).hexdigest()


ARTIFACT = {"model.onnx": WEIGHTS, "labels/classes.txt": b"labels"}


@pytest.mark.needs("registry")
def test_an_artifact_by_tag_and_by_digest_goes_on_after_cuts(tmp_path: Path) -> None:
    with registry(tmp_path) as address:
        digest = Pusher(address).artifact("2", ARTIFACT)
        assert brought(find(f"oci://{address}/{REPOSITORY}:2", "", {}), tmp_path / "tag") == ARTIFACT
        with cutting(address, 1_000_000, 2) as (way, passed):
            assert brought(find(f"oci://{way}/{REPOSITORY}@sha256:{digest}", "", {}), tmp_path / "digest") == ARTIFACT
        assert sum(passed) < len(WEIGHTS) + 20_000
        for missing in (":3", f"@sha256:{'0' * 64}"):
            with pytest.raises(NotFound, match="MANIFEST_UNKNOWN"):
                find(f"oci://{address}/{REPOSITORY}{missing}", "", {})


@pytest.mark.needs("registry")
def test_a_registry_that_wants_a_token_is_given_one(tmp_path: Path) -> None:
    issuer = Issuer()
    (tmp_path / "issuer.pem").write_bytes(issuer.certificate)
    with server(issuer.answer) as (realm, asked):
        auth = f"{{realm: 'http://{realm}/token', service: registry, issuer: issuer, rootcertbundle: {tmp_path / 'issuer.pem'}}}"
        with registry(tmp_path, f"auth: {{token: {auth}}}\n") as address:
            Pusher(address, f"Bearer {issuer.token(f'repository:{REPOSITORY}:push', ('pull', 'push'))}").artifact("2", ARTIFACT)
            known = {"BANYAN_REGISTRY_USER": "me", "BANYAN_REGISTRY_PASSWORD": PASSWORD}
            assert brought(find(f"oci://{address}/{REPOSITORY}:2", "", known), tmp_path / "in") == ARTIFACT
            assert len(asked) == 1 and f"scope={urllib.parse.quote_plus(f'repository:{REPOSITORY}:pull')}" in asked[0][0]
            for stranger in ({}, known | {"BANYAN_REGISTRY_PASSWORD": "guessed"}):
                with pytest.raises(Forbidden) as refused:
                    find(f"oci://{address}/{REPOSITORY}:2", "", stranger)
                assert "guessed" not in str(refused.value)
