"""`banyan backup` and `banyan restore`: everything that makes a controller who it is, in one encrypted file, and the way back.

A running controller makes its backup itself, without stopping; one that does not run is read from its data folder. The passphrase
comes from a file, from BANYAN_PASSPHRASE, or from the keyboard; it is never an argument, where every user of the machine sees it.
"""

import asyncio
import getpass
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from msgspec import Struct

from banyanctl import output
from banyanctl.cli import examples, settings
from banyanctl.client import Client
from banyanctl.endpoint import resolve
from banyanctl.events import configure
from banyanctl.leaving import owner
from banyanctl.places import default_data
from cluster_controller import clock
from cluster_controller.errors import AlreadyExists, Exhausted, InvalidInput, StoreInUse, Unreachable
from cluster_controller.store.backup import PASSPHRASE_LENGTH

VARIABLE = "BANYAN_PASSPHRASE"
FILE_LIMIT_BYTES = 4096
TIMEOUT_SECONDS = 600.0  # until the first byte: the controller writes all of it first

PassphraseFile = Annotated[
    str,
    typer.Option(
        "--passphrase-file", metavar="FILE", help="Where the passphrase stands.", show_default=f"{VARIABLE}, else it is asked for"
    ),
]


class Kept(Struct, frozen=True):
    """What a backup holds, for the answer."""

    made: str
    revision: int
    objects: int


@examples("banyan backup root.backup", "banyan backup /backups/root-$(date +%F).backup --passphrase-file /etc/banyan/passphrase")
def backup(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The new file; it is never overwritten.")],
    passphrase_file: PassphraseFile = "",
) -> None:
    """Write an encrypted backup of a controller: its store, its identity with the issuing keys, its settings. It works on meanwhile.

    Not in it: model files and volumes. Ask the controller itself; a backup does not travel through others.
    """
    if settings().at:
        raise InvalidInput(
            "a backup holds private keys and does not travel through other controllers: run this on the machine itself", "--at"
        )
    target = Path(file).absolute()
    if target.exists():
        raise AlreadyExists(f"{target} exists: choose another name, a backup never overwrites")
    word = passphrase(passphrase_file, twice=True)
    with output.progress("the controller writes its backup"):
        kept = _backup(target, word)
    told = {"file": str(target), "made": kept.made, "revision": kept.revision, "objects": kept.objects, "bytes": target.stat().st_size}
    size = output.size(target.stat().st_size)
    output.emit(told, settings().output, lambda: print(f"{target}: {kept.objects} objects, revision {kept.revision}, {size}"))


def _backup(target: Path, word: str) -> Kept:
    folder = _stopped()
    if folder is not None:
        configure("human", "error")
        return asyncio.run(_read_folder(folder, target, word))
    with Client(resolve(settings().kubeconfig, settings().data), TIMEOUT_SECONDS) as client:
        headers, chunks = client.download("POST", "/backup", {"passphrase": word})
        expected = int(headers.get("content-length", "0"))
        partial = target.with_name(f".{target.name}.partial")
        try:
            with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as out:
                for chunk in chunks:
                    out.write(chunk)
                out.flush()
                os.fsync(out.fileno())
                if out.tell() != expected:
                    raise Unreachable(f"only {out.tell()} of {expected} bytes of the backup came; try again")
            partial.rename(target)
        except OSError as error:
            raise InvalidInput(f"{target} cannot be written ({error.strerror}); choose another place", "FILE") from error
        finally:
            partial.unlink(missing_ok=True)
    return Kept(headers.get("banyan-backup-made", ""), _number(headers, "revision"), _number(headers, "objects"))


def _number(headers: Mapping[str, str], name: str) -> int:
    return int(headers.get(f"banyan-backup-{name}", "0"))


def _stopped() -> Path | None:
    """The data folder of a controller of this machine that does not run; None when one is to be asked."""
    if settings().kubeconfig:
        return None
    folder = Path(settings().data or default_data()).absolute()
    return folder if (folder / "identity" / "identity.json").exists() and owner(folder) is None else None


async def _read_folder(folder: Path, target: Path, word: str) -> Kept:
    from cluster_controller.store import Store
    from cluster_controller.tree.times import format_time
    from openapi.backup import included

    store = await Store.open(folder)
    try:
        made = await store.backup(target, word, included(folder), format_time(clock.wall()))
    finally:
        await store.close()
    return Kept(made.made, made.revision, made.objects)


@examples("banyan restore root.backup --data /var/lib/banyan", "banyan restore root.backup --passphrase-file /etc/banyan/passphrase")
def restore(
    file: Annotated[str, typer.Argument(metavar="FILE", help="What `banyan backup` wrote.")],
    passphrase_file: PassphraseFile = "",
) -> None:
    """Make a controller's data folder from its backup, on this machine or another. Never over something that is there.

    Nothing in the field is rolled back: what children hold and this backup does not know runs on and shows Conflict, until
    `banyan cluster conflicts NAME --keep field|root`. Open join tokens are void.
    """
    folder = Path(settings().data or default_data()).absolute()
    if owner(folder) is not None:
        raise StoreInUse(f"the controller in {folder} runs; stop it and move its folder away first, or restore elsewhere with --data")
    word = passphrase(passphrase_file, twice=False)
    configure("human", "error")  # what a running controller tells its log, a person has no use for here
    with output.progress("reading the backup"):
        told = asyncio.run(_restore(Path(file).absolute(), folder, word))
    output.emit(told, settings().output, lambda: _say(told))


async def _restore(source: Path, folder: Path, word: str) -> dict[str, Any]:
    from cluster_controller import restored
    from cluster_controller.identity import load
    from cluster_controller.store import Store
    from cluster_controller.store.backup import restore
    from cluster_controller.tree import records
    from cluster_controller.tree.times import format_time

    summary = await asyncio.to_thread(restore, source, folder, word, format_time(clock.wall()))
    store = await Store.open(folder)
    try:
        found = await restored.settle(store)
        members = sorted(one.name for one in records.members(store).values() if one.state == "member")
        users = sorted(stored.key.name for stored in store.list(records.OWN, "User"))
    finally:
        await store.close()
    return {
        "name": load(folder / "identity").name,
        "data": str(folder),
        "made": summary.made,
        "revision": summary.revision,
        "objects": summary.objects,
        "tokensVoided": found.voided if found is not None else 0,
        "members": members,
        "users": users,
    }


def _say(told: Mapping[str, Any]) -> None:
    print(f"{told['name']} is in {told['data']}, as it was at {told['made']} (revision {told['revision']}, {told['objects']} objects)")
    print(f"  join tokens  {told['tokensVoided']} were open and are void now")
    print(f"  members      {', '.join(told['members']) or 'none'}")
    print(f"  users        {', '.join(told['users']) or 'none'}")
    print("  Who joined later comes in by its certificate and is named in the condition Restored (`banyan status`); users made later are")
    print("  refused. Revocations given later are not known: give them again.")
    flag = "" if Path(told["data"]) == default_data().absolute() else f" --data {told['data']}"
    print(f"run it:  banyan run{flag}")


def passphrase(file: str, *, twice: bool, environment: Mapping[str, str] = os.environ) -> str:
    """From the file, the variable or the keyboard. InvalidInput when there is none, or it is too short."""
    if file:
        try:
            with Path(file).open(encoding="utf-8") as stream:
                word = stream.read(FILE_LIMIT_BYTES + 1)
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInput(f"{file} cannot be read: {error}", "--passphrase-file") from error
        if len(word) > FILE_LIMIT_BYTES:
            raise Exhausted(f"{file} is longer than {FILE_LIMIT_BYTES} characters; that is no passphrase")
        word = word.strip("\r\n")
    elif (given := environment.get(VARIABLE)) is not None:
        word = given
    elif sys.stdin.isatty():
        word = getpass.getpass("passphrase of the backup: ")
        if twice and getpass.getpass("once more: ") != word:
            raise InvalidInput("the two passphrases differ; nothing was done")
    else:
        raise InvalidInput(f"the backup's passphrase is missing: give --passphrase-file FILE or set {VARIABLE}", "--passphrase-file")
    if len(word) < PASSPHRASE_LENGTH:
        raise InvalidInput(f"a passphrase needs at least {PASSPHRASE_LENGTH} characters", "--passphrase-file")
    return word
