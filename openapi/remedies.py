"""What to do instead, for what people try with kubectl and this API does not offer.

Only words: which verbs and subresources exist is the registry's to say. They end the message of a 404 or 405, so that nobody has
to look for the page that explains it.
"""

ENTERING = (
    "an instance on a process cluster cannot be entered: kubectl logs shows what it writes, applications/NAME/proxy/ leads to its port"
)

_WRITES = {
    "Pod": "a pod is what an Application runs here: change, scale or delete the Application",
    "Node": "a node is shown as it is: cordon, taint or label its Cluster (kubectl patch cluster NAME), at its own controller or above",
    "SubtreeApplication": "it is changed where it was written: kubectl with `banyan kubeconfig ORIGIN --banyan`, or banyan --at ORIGIN",
    "Work": "placement makes it of an Application: change that",
}
_METHODS = {
    ("Cluster", "POST"): "a cluster comes by joining: banyan token create here, banyan join TOKEN --name NAME there",
}
_SUBRESOURCES = {
    ("Pod", "exec"): ENTERING,
    ("Pod", "attach"): ENTERING,
    ("Pod", "portforward"): ENTERING,
    ("Pod", "ephemeralcontainers"): ENTERING,
    ("Pod", "eviction"): _WRITES["Pod"],
    ("Pod", "status"): "controllers write it, and kubectl get shows it",
}


def of_method(kind: str, method: str) -> str:
    """Behind a 405; "" when there is nothing to add."""
    if method in ("GET", "HEAD"):
        return ""
    return _METHODS.get((kind, method)) or _WRITES.get(kind, "")


def of_subresource(kind: str, subresource: str) -> str:
    """Behind a 404; "" when there is nothing to add."""
    return _SUBRESOURCES.get((kind, subresource), "")
