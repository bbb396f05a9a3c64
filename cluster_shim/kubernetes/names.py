"""How things are called in a member, so that equal names of two origins never meet and everything of ours is found again. Pure."""

import base64
import hashlib
import re

MANAGER = "banyan"  # field manager of server-side apply, and the value of app.kubernetes.io/managed-by
MANAGED_BY = "app.kubernetes.io/managed-by"
NAME = "app.kubernetes.io/name"
COMPONENT = "app.kubernetes.io/component"
APPLICATION_UID = "banyan.dev/application-uid"
APPLICATION = "banyan.dev/application"  # NAMESPACE.NAME.ORIGIN cut to what a label may hold; for people
COMPONENT_LABEL = "banyan.dev/component"
REVISION = "banyan.dev/revision"
APPLIED = "banyan.dev/applied"  # annotation: hash of what we applied
OWN_NAMESPACE = "banyan.dev/made-namespace"  # label of a namespace that we made, and may remove
PART_OF = "applyset.kubernetes.io/part-of"  # KEP-3659
KEEP = "banyan.dev/keep"  # annotation: this object outlives the application that brought it
KEPT_FROM = "banyan.dev/kept-from"  # annotation of one that did: the application's uid

MAX_NAME = 63
MAX_WORKLOAD = 52  # what pods are named after: they add a hash and a suffix
MAX_LABEL = 63

_UNFIT = re.compile(r"[^a-z0-9-]+")
_UNFIT_LABEL = re.compile(r"[^A-Za-z0-9_.-]+")


def short_hash(text: str, length: int = 6) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def object_name(application: str, component: str, uid: str, *, limit: int = MAX_WORKLOAD) -> str:
    """NAME-COMPONENT-HASH, a DNS label of at most ``limit`` characters; what is cut off still counts, by the hash."""
    suffix = short_hash(f"{uid}/{component}" if component else uid)
    stem = _UNFIT.sub("-", f"{application}-{component}".lower()).strip("-")
    return f"{stem[: limit - len(suffix) - 1].rstrip('-')}-{suffix}" if stem else f"x{suffix}"


def label_value(text: str) -> str:
    """``text`` as a label's value; a long one ends in a hash of the whole."""
    fit = _UNFIT_LABEL.sub("-", text).strip("-_.")
    if len(fit) <= MAX_LABEL:
        return fit
    return f"{fit[: MAX_LABEL - 7].rstrip('-_.')}-{short_hash(text)}"


def namespace_of(work_namespace: str) -> str:
    """The member's namespace for an Application's; objects without one live in `default`, as everywhere."""
    return work_namespace or "default"


def applyset_id(name: str, namespace: str, kind: str = "ConfigMap", group: str = "") -> str:
    """KEP-3659: base64url(sha256("NAME.NAMESPACE.KIND.GROUP")), with its version."""
    digest = hashlib.sha256(f"{name}.{namespace}.{kind}.{group}".encode()).digest()
    return f"applyset-{base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}-v1"
