"""Write the reference pages that are made from the code: the command line, the configuration, the API, the exit codes.

    python -m tools.reference write     make docs/reference/*.md anew
    python -m tools.reference check     fail when they are not what the code says now

What is committed is read by people; what is checked keeps it true.
"""

import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click
import msgspec

from banyanctl import cli, run
from cluster_controller import errors
from cluster_controller.config import Config
from cluster_controller.identity import join
from cluster_controller.resources.registry import REGISTRY
from cluster_shim.kubernetes import rights
from openapi.schemas import Schemas
from tools import generated

TARGET = generated.ROOT / "docs" / "reference"
MADE = "<!-- Made from the code by `make docs`; change the code, not this page. -->\n"
DEPTH = 8  # of nested fields; deeper ones are objects of their own


def pages() -> dict[Path, str]:
    return {
        TARGET / "cli.md": cli_page(),
        TARGET / "configuration.md": configuration_page(),
        TARGET / "api.md": api_page(),
        TARGET / "exit-codes.md": exit_codes_page(),
        TARGET / "kubernetes-rights.md": rights_page(),
    }


# --- the command line ---


def cli_page() -> str:
    parts = ["# Command line\n", MADE, "Every command takes `--help`, which says what is here.\n"]
    root = cli.build()
    with click.Context(root, info_name="banyan", max_content_width=100, terminal_width=100) as context:
        parts.append(_help(root, context))
        for title, entries in cli.SECTIONS:
            parts.append(f"## {title}\n")
            for entry in entries:
                parts += list(_command(cli.load(entry), entry.name, context, 3))
    return "\n".join(parts)


def _command(command: click.Command, name: str, parent: click.Context, level: int) -> Iterator[str]:
    with click.Context(command, info_name=name, parent=parent, max_content_width=100, terminal_width=100) as context:
        path = context.command_path
        yield f"{'#' * level} `{path}`\n"
        yield _help(command, context) if path != "banyan run" else f"```text\n{_run_help()}\n```\n"
        if isinstance(command, click.Group):
            for child in command.list_commands(context):
                found = command.get_command(context, child)
                assert found is not None
                yield from _command(found, child, context, level + 1)


def _help(command: click.Command, context: click.Context) -> str:
    return f"```text\n{command.get_help(context).rstrip()}\n```\n"


def _run_help() -> str:
    return run.help_text(columns=100).rstrip()


# --- configuration ---


def configuration_page() -> str:
    rows = []
    for info in msgspec.structs.fields(Config):
        default = "" if info.default in (msgspec.NODEFAULT, "", ()) else f"`{info.default}`"
        rows.append(f"| `{info.name}` | `BANYAN_{info.name.upper()}` | {default} | {_cell(run.documented().get(info.name, ''))} |")
    about = " ".join((inspect.getdoc(sys.modules[Config.__module__]) or "").split()).replace("``", "`")
    return "\n".join(["# Configuration\n", MADE, about + "\n", "| field | variable | default | meaning |", "|---|---|---|---|", *rows, ""])


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


# --- the API ---


def api_page() -> str:
    schemas = Schemas()
    parts = [
        "# Resource API\n",
        MADE,
        "Kinds, their verbs and their fields, as every controller serves them. `kubectl explain` and the page at `/docs` of a running"
        " controller say the same.\n",
    ]
    for resource in REGISTRY.values():
        name = schemas.kind(resource)
        scope = "namespaced" if resource.namespaced else "of the cluster"
        parts.append(f"## {resource.kind}\n\n{resource.description}\n")
        subresources = ", ".join(f"`{each.name}` ({' '.join(each.methods)})" for each in resource.subresources)
        facts = [
            ("apiVersion", f"`{resource.api_version}`"),
            ("names", ", ".join(f"`{each}`" for each in (resource.plural, resource.singular, *resource.short_names))),
            ("scope", scope),
            ("verbs", ", ".join(resource.verbs)),
            ("who may", f"{resource.read_role} to read, {resource.write_role} to change"),
            *([("subresources", subresources)] if subresources else []),
        ]
        parts += ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in facts), ""]
        parts += ["| field | type | meaning |", "|---|---|---|"]
        parts += list(_fields(schemas.components[name], schemas.components, "", ()))
        parts.append("")
    return "\n".join(parts)


def _fields(schema: dict[str, Any], components: dict[str, Any], lead: str, above: tuple[str, ...]) -> Iterator[str]:
    """A row per field, nested ones with their dotted path; metadata is the same everywhere and is shown once by its name."""
    for name, field in (schema.get("properties") or {}).items():
        inner, kind = _resolve(field)
        text = _cell(str(field.get("description") or ""))
        default = f" Default: `{field['default']}`." if "default" in field else ""
        path = f"{lead}{name}"
        yield f"| `{path}` | {kind} | {text}{default} |"
        if inner and name != "metadata" and inner not in above and len(above) < DEPTH:
            suffix = "[]." if kind.startswith("list") else "."
            yield from _fields(components[inner], components, path + suffix, (*above, inner))


def _resolve(field: dict[str, Any]) -> tuple[str, str]:
    """The component that a field refers to, if it does, and its type in a word."""
    reference = field.get("$ref") or next((each["$ref"] for each in field.get("allOf") or [] if "$ref" in each), "")
    if reference:
        return reference.rpartition("/")[2], "object"
    if field.get("type") == "array":
        inner, kind = _resolve(field["items"])
        return inner, f"list of {kind}s" if kind != "any" else "list"
    if "enum" in field:
        return "", " or ".join(f"`{each or '(empty)'}`" for each in field["enum"])
    if field.get("x-kubernetes-int-or-string") or "anyOf" in field:
        return "", "text or number"
    if isinstance(field.get("additionalProperties"), dict):
        return "", f"map of {_resolve(field['additionalProperties'])[1]}s"
    return "", {"string": "text", "integer": "integer", "number": "number", "boolean": "true or false"}.get(str(field.get("type")), "any")


# --- exit codes ---


def exit_codes_page() -> str:
    rows = ["| 0 | | done |", "| 1 | BanyanError | anything else that failed; for `invoke`, an answer that is an error |"]
    for module in (errors, join):
        meanings = _meanings(module.__doc__ or "")
        for name, found in vars(module).items():
            own = isinstance(found, type) and issubclass(found, errors.BanyanError) and found.__module__ == module.__name__
            if own and found is not errors.BanyanError:
                rows.append(f"| {found.exit_code} | {name} | {_cell(meanings.get(name, ''))} |")
    rows.append("| 130 | | stopped with Ctrl-C |")
    rows[1:-1] = sorted(rows[1:-1], key=lambda row: int(row.split("|")[1]))
    return "\n".join(["# Exit codes\n", MADE, "| code | error | meaning |", "|---|---|---|", *rows, ""])


def _meanings(docstring: str) -> dict[str, str]:
    """What the tree of errors drawn in a module's docstring says of each."""
    return {
        found[1]: re.sub(r"\s+(exit )?\d+(–\d+)?\s*$", "", found[2]).strip()
        for found in re.finditer(r"── (\w+) +(.*)$", re.sub(r"  +(\d\d)  +", "  ", docstring), re.MULTILINE)
    }


# --- rights in a Kubernetes member ---


def rights_page() -> str:
    """Every rule of the shim, as the chart and the manifest grant it."""
    parts = [
        "# Rights in a Kubernetes member\n",
        MADE,
        "What a controller may do in the cluster that it makes a member, by profile, and why. The chart and"
        " `banyan join --print-manifest` grant exactly this; from outside, whoever the kubeconfig names needs it. An end-to-end test"
        " compares it with the audit log of a real API server, both ways. What to add for other kinds of objects:"
        " [Join a Kubernetes or k3s site](../how-to/join-kubernetes.md#what-it-may-do-there).\n",
    ]
    inside = {grant.name: grant for grant in rights.grants("namespaced")}
    for grant in rights.grants("full"):
        other = inside.get(grant.name)
        places = f"Profile `full`: {_where(grant)}. Profile `namespaced`: {'not granted' if other is None else _where(other)}."
        parts.append(f"## {grant.about.rstrip('.')}\n\nRole `…-{grant.name}`. {places}\n")
        parts += ["| group | resources | verbs | why |", "|---|---|---|---|"]
        for rule in grant.rules:
            only = f", only {_codes(rule.names)}" if rule.names else ""
            parts.append(
                f"| {_codes((rule.group or 'core',))} | {_codes(rule.resources)}{only} | {', '.join(rule.verbs)} | {_cell(rule.reason)} |"
            )
        parts.append("")
    label = " ".join(f"{key}: {value}" for key, value in rights.EXTRA.items())
    parts += [
        "## What the site adds\n",
        f"Role `…-applications`: the rules of every ClusterRole with the label `{label}`. Profile `full`: everywhere."
        " Profile `namespaced`: in the namespaces that the site names.\n",
        "## What people may do\n",
        f"Whoever comes in by kubectl through the tree is the user `{rights.PERSON}` here, in one group; the person's name is in the"
        f" audit log as the extra `{rights.EXTRA_KEY}`. The chart binds each group to a role of the cluster's own, which the site may"
        " change.\n",
        "| group | who in the tree | role by default |",
        "|---|---|---|",
        *(f"| `{group}` | {group.partition(':')[2]} | `{role}` |" for group, role in rights.ROLES.items()),
        "",
    ]
    return "\n".join(parts)


def _where(grant: rights.Grant) -> str:
    if grant.within:
        return f"in the namespace `{grant.within}`"
    return "everywhere" if grant.everywhere else "in the namespaces that the site names"


def _codes(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


if __name__ == "__main__":
    sys.exit(generated.main(__doc__, {"write": lambda: generated.write(pages()), "check": lambda: generated.check(pages())}))
