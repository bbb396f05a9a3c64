"""Narrow structs read what API servers send, whatever else is in it."""

import msgspec

from cluster_shim.kubernetes import narrow

# As a v1.34 API server wrote them, shortened.
EVENT = b"""{"type":"MODIFIED","object":{"kind":"Pod","apiVersion":"v1","metadata":{"name":"a","namespace":"default","uid":"u1",
"resourceVersion":"812","generation":2,"annotations":{"big":"x"},"managedFields":[{"manager":"kubelet","fieldsV1":{"f:status":{}}}]},
"spec":{"nodeName":"n1","containers":[{"name":"main","image":"i","resources":{"requests":{"cpu":"100m"}}}],"priority":0},
"status":{"phase":"Running","podIP":"10.1.2.3","podIPs":[{"ip":"10.1.2.3"}],"qosClass":"Burstable",
"containerStatuses":[{"name":"main","ready":true,"restartCount":0,"started":true,"state":{"running":{"startedAt":"2026-11-21T10:00:00Z"}},
"lastState":{},"image":"i","imageID":"sha256:1"}]}}}"""
BOOKMARK = b'{"type":"BOOKMARK","object":{"kind":"Pod","apiVersion":"v1","metadata":{"resourceVersion":"900","creationTimestamp":null}}}'
ERROR = b'{"type":"ERROR","object":{"kind":"Status","message":"too old resource version: 1 (812)","reason":"Expired","code":410}}'
PAGE = (
    b'{"kind":"PodList","metadata":{"resourceVersion":"812","continue":"abc","remainingItemCount":3},"items":[{"metadata":{"uid":"u1"}}]}'
)


def test_a_watch_event_and_its_pod() -> None:
    event = msgspec.json.decode(EVENT, type=narrow.WatchEvent)
    pod = msgspec.json.decode(event.object, type=narrow.Pod)
    assert (event.type, pod.metadata.resource_version, pod.status.pod_ip) == ("MODIFIED", "812", "10.1.2.3")
    assert pod.status.container_statuses[0].last_state == narrow.State()


def test_a_bookmark_an_error_and_a_page() -> None:
    bookmark = msgspec.json.decode(BOOKMARK, type=narrow.WatchEvent)
    assert msgspec.json.decode(bookmark.object, type=narrow.VersionOnly).metadata.resource_version == "900"
    error = msgspec.json.decode(msgspec.json.decode(ERROR, type=narrow.WatchEvent).object, type=narrow.ErrorObject)
    assert (error.code, error.reason) == (410, "Expired")
    page = msgspec.json.decode(PAGE, type=narrow.Page)
    assert (page.metadata.continue_, len(page.items or [])) == ("abc", 1)
    assert msgspec.json.decode(b'{"metadata":{},"items":null}', type=narrow.Page).items is None
