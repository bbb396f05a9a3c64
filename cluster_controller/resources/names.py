"""The grammars of names: what a user may call a thing, and why not."""

import re

DNS_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
DNS_SUBDOMAIN = re.compile(rf"{DNS_LABEL.pattern}(?:\.{DNS_LABEL.pattern})*")
ENVIRONMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,252}")
DATA_KEY = re.compile(r"[-._A-Za-z0-9]{1,253}")
IMAGE = re.compile(r"[a-z0-9](?:[A-Za-z0-9._:/@-]{0,510}[A-Za-z0-9])?")  # registry/repository:tag@digest; the member's runtime knows better
MODEL_VERSION = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")


def label_problem(name: str) -> str:
    """Why this is no DNS label, or ""."""
    if DNS_LABEL.fullmatch(name):
        return ""
    return f"{shown(name)} is no DNS label: at most 63 lower-case letters, digits and '-', beginning and ending with a letter or digit"


def subdomain_problem(name: str) -> str:
    """Why this is no name of DNS labels joined by dots, or ""."""
    if len(name) <= 253 and DNS_SUBDOMAIN.fullmatch(name):
        return ""
    return f"{shown(name)} is no DNS name: at most 253 characters; lower-case letters, digits and '-' in labels joined by '.'"


def path_problem(path: str) -> str:
    """Why this is no relative path that stays below its folder, or ""."""
    if not path or len(path) > 1024 or "\0" in path:
        return f"{shown(path)} is no path: between 1 and 1024 characters"
    if path.startswith("/"):
        return f"{shown(path)} is absolute; write a path relative to the working folder"
    if any(part in ("", ".", "..") for part in path.split("/")):
        return f"{shown(path)} has an empty, '.' or '..' part; write it without"
    return ""


def shown(text: str) -> str:
    """A user's text in an error message: quoted and cut."""
    return repr(text if len(text) <= 80 else text[:77] + "...")
