"""The systemd unit of a controller with the process shim.

``KillMode=process``: stopping or restarting the unit ends the controller alone. The supervisor and the instances live in the
same control group, and any other mode would kill them with it. ``Delegate=`` lets the supervisor limit cpu and memory of
instances, and ``OOMPolicy=continue`` keeps one instance that asked for too much from ending the unit. A failed controller comes
back for ever, but not where only a person helps: settings that are wrong (exit code 2), no cluster that lives there (3).

There is no sandbox (``ProtectSystem=``, ``PrivateTmp=``, ``NoNewPrivileges=`` …): the applications run inside the unit, so each
would be theirs too, and those made of mount namespaces would differ between instances started before a restart and after it.
``User=`` is the lever that there is. To stop the applications of a site: ``banyan leave`` or ``client.end``.
"""

from collections.abc import Sequence
from pathlib import Path

from cluster_shim.contract import ShimError

_TEMPLATE = """\
# Written by banyan; stopping this unit stops the controller, not the applications that run on this site.
[Unit]
Description=Banyan cluster controller{name}
After=network-online.target time-sync.target
Wants=network-online.target
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStart={command}
{user}Restart=always
RestartSec=1
RestartPreventExitStatus=2 3
TimeoutStartSec=300
KillMode=process
Delegate=cpu memory
OOMPolicy=continue
TimeoutStopSec=30
UMask=0077
LimitNOFILE=65536

[Install]
WantedBy={target}
"""


def unit(command: Sequence[str], *, name: str = "", user: str = "", target: str = "multi-user.target") -> str:
    """The unit's text. ``command``: an absolute program and its arguments, for instance ``banyan run --data /var/lib/banyan``.

    ``target``: what pulls it in at boot; a user's own unit says ``default.target``.
    """
    if not command or not Path(command[0]).is_absolute():
        raise ShimError(f"systemd wants the program's absolute path, not {command[0] if command else 'nothing'!r}")
    for word in (*command, name, user):
        if any(ord(letter) < 32 for letter in word):
            raise ShimError(f"{word!r} cannot be written into a systemd unit: it has control characters")
    return _TEMPLATE.format(
        name=f" {_escape(name)}" if name else "",
        command=" ".join([_quote(command[0], program=True), *(_quote(word) for word in command[1:])]),
        user=f"User={_escape(user)}\n" if user else "",
        target=target,
    )


def _escape(text: str) -> str:
    return text.replace("%", "%%")


def _quote(word: str, *, program: bool = False) -> str:
    """As systemd.syntax(7) and systemd.service(5) want it: quotes, backslashes, specifiers and variables are literal.

    In the program's own path no variable is looked for, so its dollar signs stay single.
    """
    text = _escape(word).replace("\\", "\\\\").replace('"', '\\"')
    text = text if program else text.replace("$", "$$")
    return f'"{text}"' if not text or any(letter in text for letter in " \t;'\"\\") else text
