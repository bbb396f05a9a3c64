"""The Prometheus text of one controller, made when it is asked for; counting costs nothing in between but an addition.

Names follow the Prometheus conventions: `banyan_…_total` for counters, base units in the name.
"""

import asyncio
import time
from collections.abc import Iterator, Mapping
from typing import Protocol

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cluster_controller import clock, events, tasks
from cluster_controller.app import Controller
from cluster_controller.reconcile.reconciler import Reconciler
from cluster_controller.tunnel.link import Link


class FrontNumbers(Protocol):
    """What the front counts (`openapi.front.metrics`)."""

    @property
    def requests(self) -> Mapping[tuple[str, int], int]: ...

    @property
    def in_flight(self) -> int: ...

    @property
    def connections(self) -> int: ...


def exposition(controller: Controller, front: FrontNumbers | None) -> bytes:
    """The text format, version 0.0.4."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(controller, front))
    registry.register(EventNumbers())
    return generate_latest(registry)


class EventNumbers(Collector):
    """What this process has written Events of."""

    def collect(self) -> Iterator[Metric]:
        dropped = CounterMetricFamily("banyan_events_dropped", "Events that made room for newer ones.", labels=["namespace"])
        for namespace, count in events.dropped.items():
            dropped.add_metric([namespace], count)
        yield dropped
        happened = CounterMetricFamily("banyan_happened", "Events written, by their reason.", labels=["reason"])
        for reason in (*(reason.value for reason in events.Reason), events.OTHER):
            happened.add_metric([reason], events.happened[reason])
        yield happened


class _Collector(Collector):
    def __init__(self, controller: Controller, front: FrontNumbers | None) -> None:
        self._controller = controller
        self._front = front

    def collect(self) -> Iterator[Metric]:
        controller = self._controller
        info = GaugeMetricFamily("banyan_info", "Version of this controller.", labels=["cluster", "version"])
        info.add_metric([controller.name, controller.version], 1)
        yield info
        yield CounterMetricFamily("banyan_processor_seconds", "Processor time of this controller.", value=time.process_time())
        yield from self._store()
        yield from self._links()
        yield from self._sync()
        yield from self._failover()
        yield from self._models()
        yield from self._clusters()
        if controller.reconciler is not None:
            yield from self._nodes(controller.reconciler)
            yield from self._instances(controller.reconciler)
        crashes = CounterMetricFamily(
            "banyan_task_crashes", "Background tasks that a defect ended; the log has the traceback.", labels=["owner"]
        )
        for owner, count in tasks.crashes.items():
            crashes.add_metric([owner], count)
        yield crashes
        yield GaugeMetricFamily("banyan_tasks", "Background tasks that are under way.", value=len(asyncio.all_tasks()))
        yield CounterMetricFamily("banyan_placements", "Placement decisions taken.", value=controller.engine.settled)
        yield GaugeMetricFamily(
            "banyan_replaced_replicas",
            "Replicas of silent clusters that others hold (onUnreachable: Replace).",
            value=controller.engine.replaced,
        )
        yield GaugeMetricFamily(
            "banyan_refused_replicas", "Replicas from above that the policy of this site refuses.", value=controller.engine.refused
        )
        yield CounterMetricFamily(
            "banyan_rebalanced_replicas", "Replicas moved because others carried less.", value=controller.engine.rebalanced
        )
        rollouts = GaugeMetricFamily("banyan_rollouts", "Rollouts at this controller, by how far they are.", labels=["phase"])
        for phase, number in sorted(controller.engine.rollouts().items()):
            rollouts.add_metric([phase], number)
        yield rollouts
        yield CounterMetricFamily(
            "banyan_reports_unknown", "Reports about applications that are not known here, dropped.", value=controller.engine.unknown
        )
        if self._front is not None:
            yield from self._requests(self._front)

    def _store(self) -> Iterator[Metric]:
        store = self._controller.store
        yield GaugeMetricFamily("banyan_store_revision", "Newest revision on the disk.", value=store.revision)
        yield GaugeMetricFamily("banyan_store_writable", "1 while the disk takes commits, else 0.", value=int(store.trouble is None))
        yield GaugeMetricFamily("banyan_store_journal_bytes", "Of changes kept for watchers and peers.", value=store.journal_bytes)
        objects = GaugeMetricFamily("banyan_store_objects", "Objects by space.", labels=["space"])
        for space in store.spaces():
            objects.add_metric([space], store.size(space))
        yield objects

    def _links(self) -> Iterator[Metric]:
        controller = self._controller
        links: list[Link] = list(controller.tunnel.links.values())
        if controller.tunnel.parent is not None:
            links.append(controller.tunnel.parent)
        received = CounterMetricFamily("banyan_link_received_bytes", "Bytes received, before TLS.", labels=["peer"])
        sent = CounterMetricFamily("banyan_link_sent_bytes", "Bytes sent, before TLS.", labels=["peer"])
        frames_in = CounterMetricFamily("banyan_link_received_frames", "Frames received.", labels=["peer"])
        frames_out = CounterMetricFamily("banyan_link_sent_frames", "Frames sent.", labels=["peer"])
        messages_in = CounterMetricFamily("banyan_link_received_messages", "WebSocket messages received, of frames.", labels=["peer"])
        messages_out = CounterMetricFamily("banyan_link_sent_messages", "WebSocket messages sent.", labels=["peer"])
        rtt = GaugeMetricFamily("banyan_link_round_trip_seconds", "Measured round trip.", labels=["peer"])
        heard = GaugeMetricFamily("banyan_link_heard_seconds", "Since the last byte was heard.", labels=["peer"])
        now = clock.boottime()
        for link in links:
            peer = [link.peer_name or link.peer_uid]
            received.add_metric(peer, link.stats.bytes_in)
            sent.add_metric(peer, link.stats.bytes_out)
            frames_in.add_metric(peer, link.stats.frames_in)
            frames_out.add_metric(peer, link.stats.frames_out)
            messages_in.add_metric(peer, link.stats.messages_in)
            messages_out.add_metric(peer, link.stats.messages_out)
            heard.add_metric(peer, now - link.last_heard)
            if link.rtt is not None:
                rtt.add_metric(peer, link.rtt)
        yield from (received, sent, frames_in, frames_out, messages_in, messages_out, rtt, heard)
        streams = GaugeMetricFamily("banyan_link_streams", "Streams that are open on a link, those passed on included.", labels=["peer"])
        for link in links:
            streams.add_metric([link.peer_name or link.peer_uid], link.streams)
        yield streams
        yield GaugeMetricFamily("banyan_links", "Links that stand.", value=len(links))

    def _sync(self) -> Iterator[Metric]:
        controller = self._controller
        lag = GaugeMetricFamily("banyan_sync_lag_revisions", "Revisions since the last change that the peer acknowledged.", labels=["peer"])
        applied = CounterMetricFamily("banyan_sync_applied_objects", "Objects applied from the peer.", labels=["peer"])
        known = CounterMetricFamily("banyan_sync_known_objects", "Objects that came again, or too late, and were dropped.", labels=["peer"])
        home = controller.identity()
        for uid, counts in controller.links.counts().items():
            peer = [home.saved.parent_name if uid == home.parent_uid else controller.cluster_name(uid)]
            applied.add_metric(peer, counts.applied)
            known.add_metric(peer, counts.known)
            session = controller.links.sessions.get(uid)
            if session is not None and session.source is not None:
                lag.add_metric(peer, session.source.lag)
        yield from (lag, applied, known)
        yield CounterMetricFamily(
            "banyan_sync_interruptions", "Sync sessions that failed, to be started again.", value=controller.links.interrupted
        )

    def _models(self) -> Iterator[Metric]:
        library = self._controller.library
        blobs = library.blobs
        yield GaugeMetricFamily("banyan_models_bytes", "Of models' files on this disk, those that arrive included.", value=blobs.used)
        yield GaugeMetricFamily("banyan_models_budget_bytes", "What they may take.", value=blobs.budget)
        yield CounterMetricFamily("banyan_models_pulled_bytes", "Of models that came from above.", value=blobs.pulled)
        yield CounterMetricFamily("banyan_models_shared_bytes", "Of models, copied from other files here instead.", value=blobs.shared)
        yield CounterMetricFamily("banyan_models_cuts", "Pulls that were cut, and asked again.", value=blobs.cuts)
        arriving = library.progress()
        left = sum(each.size - each.received for each in arriving if each.size >= 0)
        yield GaugeMetricFamily("banyan_models_arriving", "Files of models that are being pulled.", value=len(arriving))
        yield GaugeMetricFamily("banyan_models_missing_bytes", "Of those, what has yet to come.", value=left)

    def _failover(self) -> Iterator[Metric]:
        membership = self._controller.membership
        text = "Times that another controller than the home parent took this cluster in."
        yield CounterMetricFamily("banyan_failovers", text, value=membership.adoptions)
        yield CounterMetricFamily("banyan_returns", "Times that this cluster came back to its home parent.", value=membership.returns)
        yield GaugeMetricFamily("banyan_adopted", "1 while another controller carries this cluster.", value=int(bool(membership.adopter)))
        yield GaugeMetricFamily("banyan_guests", "Children of others that are carried here.", value=len(membership.guests.present()))
        text = "Parts of shares that clusters hold directly from here while their home parent is away."
        yield GaugeMetricFamily("banyan_lent", text, value=self._controller.engine.lent)
        yield CounterMetricFamily("banyan_guests_adopted", "Times that a child of another was taken in.", value=membership.guests.adopted)
        yield CounterMetricFamily("banyan_guests_refused", "Times that one was not.", value=membership.guests.refused)

    def _clusters(self) -> Iterator[Metric]:
        controller = self._controller
        age = GaugeMetricFamily(
            "banyan_cluster_heard_seconds", "Age of what is known of a cluster below.", labels=["cluster", "broken_hop"]
        )
        for stored in controller.store.list("own", "Cluster"):
            heard = controller.heard(stored.uid)
            if heard is not None:
                age.add_metric([stored.key.name, heard.broken_hop], heard.seconds)
        yield age

    def _nodes(self, reconciler: Reconciler) -> Iterator[Metric]:
        has, room, used = "What a node has.", "What applications may use of a node.", "Measured use of a node."
        cpu = GaugeMetricFamily("banyan_node_cpu_capacity_cores", has, labels=["node"])
        memory = GaugeMetricFamily("banyan_node_memory_capacity_bytes", has, labels=["node"])
        room_cpu = GaugeMetricFamily("banyan_node_cpu_allocatable_cores", room, labels=["node"])
        room_memory = GaugeMetricFamily("banyan_node_memory_allocatable_bytes", room, labels=["node"])
        used_cpu = GaugeMetricFamily("banyan_node_cpu_used_cores", used, labels=["node"])
        used_memory = GaugeMetricFamily("banyan_node_memory_used_bytes", used, labels=["node"])
        labels = ["node", "accelerator"]
        accelerators = GaugeMetricFamily("banyan_node_accelerators", room, labels=labels)
        free = GaugeMetricFamily("banyan_node_accelerators_free", "Of those, what no instance holds.", labels=labels)
        held = reconciler.sight.accelerators_held()
        for node in reconciler.nodes:
            cpu.add_metric([node.name], node.cpu_millis / 1000)
            memory.add_metric([node.name], node.memory_bytes)
            room_cpu.add_metric([node.name], node.allocatable_cpu_millis / 1000)
            room_memory.add_metric([node.name], node.allocatable_memory_bytes)
            if node.used_cpu_millis >= 0:
                used_cpu.add_metric([node.name], node.used_cpu_millis / 1000)
            if node.used_memory_bytes >= 0:
                used_memory.add_metric([node.name], node.used_memory_bytes)
            for kind, count in node.accelerators.items():
                accelerators.add_metric([node.name, kind], count)
                free.add_metric([node.name, kind], max(0, count - held.get((node.name, kind), 0)))
        yield from (cpu, memory, room_cpu, room_memory, used_cpu, used_memory, accelerators, free)

    def _instances(self, reconciler: Reconciler) -> Iterator[Metric]:
        labels = ["application", "component", "instance"]
        restarts = CounterMetricFamily("banyan_instance_restarts", "Restarts of an instance.", labels=labels)
        memory = GaugeMetricFamily("banyan_instance_memory_bytes", "Measured use of an instance.", labels=labels)
        cpu = GaugeMetricFamily("banyan_instance_cpu_cores", "Measured use of an instance.", labels=labels)
        for application, instance in reconciler.sight.instances():
            values = [application, instance.component, instance.id]
            restarts.add_metric(values, instance.restarts)
            if instance.memory_bytes >= 0:
                memory.add_metric(values, instance.memory_bytes)
            if instance.cpu_millis >= 0:
                cpu.add_metric(values, instance.cpu_millis / 1000)
        yield from (restarts, memory, cpu)

    def _requests(self, front: FrontNumbers) -> Iterator[Metric]:
        requests = CounterMetricFamily("banyan_requests", "Requests served by the front.", labels=["route", "code"])
        for (route, code), count in front.requests.items():
            requests.add_metric([route, str(code)], count)
        yield requests
        yield GaugeMetricFamily("banyan_requests_in_flight", "Requests being served.", value=front.in_flight)
        yield GaugeMetricFamily("banyan_connections", "Connections of people and programs.", value=front.connections)
