"""What API servers say when they refuse, as they said it (Kubernetes 1.33 and 1.34)."""

import pytest

from cluster_shim.kubernetes import refusals

SAID = [
    (0, "", "https://x does not answer: ReadTimeoutError", refusals.UNAVAILABLE),
    (403, "Forbidden", 'pods "a" is forbidden: exceeded quota: q, requested: count/configmaps=1, used: 2, limited: 2', refusals.QUOTA),
    (
        403,
        "Forbidden",
        'configmaps "a" is forbidden: unable to create new content in namespace x because it is being terminated',
        refusals.TERMINATING,
    ),
    (403, "Forbidden", 'configmaps is forbidden: User "edge" cannot patch resource "configmaps"', refusals.FORBIDDEN),
    (400, "", 'admission webhook "no.example.com" denied the request: not here', refusals.ADMISSION),
    (422, "Invalid", "pods \"a\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no", refusals.ADMISSION),
    (
        500,
        "InternalError",
        'Internal error occurred: failed calling webhook "x": failed to call webhook: connection refused',
        refusals.ADMISSION_AWAY,
    ),
    (422, "Invalid", 'Deployment.apps "a" is invalid: spec.selector: Invalid value: {}: field is immutable', refusals.IMMUTABLE),
    (
        422,
        "Invalid",
        'Service "s" is invalid: spec.clusterIPs[0]: Invalid value: ["10.0.0.9"]: may not change once set',
        refusals.IMMUTABLE,
    ),
    (
        422,
        "Invalid",
        "StatefulSet.apps \"a\" is invalid: spec: Forbidden: updates to statefulset spec for fields other than 'replicas' are forbidden",
        refusals.IMMUTABLE,
    ),
    (422, "Invalid", 'RoleBinding "a" is invalid: roleRef: Invalid value: {}: cannot change roleRef', refusals.IMMUTABLE),
    (422, "Invalid", 'ConfigMap "a" is invalid: []: Too long: may not be more than 1048576 bytes', refusals.TOO_LARGE),
    (413, "RequestEntityTooLarge", "Request entity too large: limit is 3145728", refusals.TOO_LARGE),
    (500, "", "etcdserver: request is too large", refusals.TOO_LARGE),
    (404, "NotFound", 'namespaces "x" not found', refusals.NO_NAMESPACE),
    (404, "NotFound", "the server could not find the requested resource", refusals.UNKNOWN_KIND),
    (405, "MethodNotAllowed", "create not allowed while custom resource definition is terminating", refusals.UNKNOWN_KIND),
    (429, "TooManyRequests", "too many requests", refusals.UNAVAILABLE),
    (503, "ServiceUnavailable", "etcd leader changed", refusals.UNAVAILABLE),
    (409, "Conflict", "the object has been modified", refusals.CONFLICT),
    (422, "Invalid", 'ConfigMap "A" is invalid: metadata.name: Invalid value: "A"', refusals.INVALID),
    (415, "UnsupportedMediaType", "no", "UnsupportedMediaType"),
]


@pytest.mark.parametrize(("status", "reason", "message", "word"), SAID)
def test_a_refusal_has_one_word_and_the_servers_own(status: int, reason: str, message: str, word: str) -> None:
    why = refusals.judge(status, reason, message)
    assert (why.reason, why.message) == (word, message)


def test_long_words_are_cut_and_causes_stand_in_for_none() -> None:
    assert len(refusals.judge(422, "Invalid", "x" * 5000).message) == refusals.MAX_WORDS
    assert refusals.judge(422, "Invalid", "", [{"message": "a"}, {"message": "b"}]).message == "a; b"
