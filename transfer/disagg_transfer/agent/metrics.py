"""Prometheus series; every one is there at 0 before anything has happened."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from disagg_transfer.contract import (
    MIXED_TRANSPORT,
    Cause,
    PeerReport,
    PeerState,
    PreflightReport,
    PreflightState,
    Report,
    Stage,
    Transport,
)

ARENA_STATES: Final = ("used", "unsettled", "total")
TRANSPORTS: Final = (*Transport, MIXED_TRANSPORT)
SAMPLE_RESULTS: Final = ("passed", "failed", "skipped")
REFUSALS: Final = ("authentication", "protocol", "timeout", "crowded")
ENGINE_REFUSALS: Final = ("user", "protocol", "timeout")
HTTP_REFUSALS: Final = ("authentication", "protocol", "timeout", "crowded")


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What the report does not say."""

    poisoned_lanes: int
    longest_silence_s: float
    reads_waiting: int  # for credit
    late_settled: int  # since the agent started


class Metrics:
    def __init__(self, state_types: Iterable[str]) -> None:
        """`state_types` have their series from the start, others once an engine has them."""
        self._late_settled = 0
        self._registry = CollectorRegistry()
        self.transfers = self._counter(
            "transfers", "Components moved whole, by state type.", ("state_type",)
        )
        self.bytes = self._counter(
            "transfer_bytes", "Bytes of components moved whole.", ("state_type",)
        )
        self.failures = self._counter(
            "transfer_failures", "Components not moved.", ("state_type", "cause")
        )
        self.timeouts = self._counter(
            "transfer_timeouts",
            "Components late, by the stage that ended.",
            ("state_type", "stage"),
        )
        self.refusals = self._counter(
            "control_refusals", "Connections turned away on the control port.", ("reason",)
        )
        self.engine_refusals = self._counter(
            "engine_socket_refusals", "Connections turned away on the unix sockets.", ("reason",)
        )
        self.http_refusals = self._counter(
            "http_refusals", "Requests and connections turned away on the HTTP port.", ("reason",)
        )
        self.samples = self._counter(
            "preflight_samples", "Samples pulled from prefill pods, by result.", ("result",)
        )
        self.late_settled = self._counter(
            "late_settled", "Extents that came back from quarantine: their bytes are done.", ()
        )
        self.poisoned = self._gauge("poisoned_lanes", "Lanes that take no requests for now.", ())
        self.silence = self._gauge(
            "heartbeat_age_worst_seconds", "Since the most silent connected peer was heard.", ()
        )
        self.preflight = self._gauge(
            "preflight_pairs", "Peers that are sampled, by newest result.", ("state",)
        )
        self.transport = self._gauge(
            "transport_info", "1 for what reads go over, as the report says.", ("transport",)
        )
        self.peers = self._gauge("peers", "Peers known, by state.", ("state",))
        self.arena = self._gauge("arena_bytes", "Arena memory, by state.", ("state",))
        self.inflight = self._gauge("requests_inflight", "Requests not ended.", ())
        self.reads_waiting = self._gauge(
            "reads_waiting", "Reads that wait for a prefill pod's credit.", ()
        )
        self.engine = self._gauge("engine_registered", "1 while an engine is registered.", ())
        self.ready = self._gauge("ready", "1 while /readyz answers 200.", ())
        self.seconds = Histogram(
            "disagg_agent_request_seconds",
            "Decode: from the first offer until everything has arrived.",
            registry=self._registry,
            buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30),
        )
        self._show_all()
        self.announce(state_types)

    def _show_all(self) -> None:
        """Every series whose labels are known now, at 0."""
        for counter, reasons in (
            (self.refusals, REFUSALS),
            (self.engine_refusals, ENGINE_REFUSALS),
            (self.http_refusals, HTTP_REFUSALS),
        ):
            for reason in reasons:
                counter.labels(reason)
        for result in SAMPLE_RESULTS:
            self.samples.labels(result)
        for state in PeerState:
            self.peers.labels(state.value)
        for kind in ARENA_STATES:
            self.arena.labels(kind)
        for pair_state in PreflightState:
            self.preflight.labels(pair_state.value)
        for transport in TRANSPORTS:
            self.transport.labels(transport)

    def announce(self, state_types: Iterable[str]) -> None:
        """Every series of these state types, at 0."""
        for name in state_types:
            self.transfers.labels(name)
            self.bytes.labels(name)
            for cause in Cause:
                self.failures.labels(name, cause.value)
            for stage in Stage:
                self.timeouts.labels(name, stage.value)

    @property
    def names(self) -> frozenset[str]:
        """As they are scraped, `_total` and all."""
        return frozenset(
            metric.name + ("_total" if metric.type == "counter" else "")
            for metric in self._registry.collect()
        )

    @property
    def strangers(self) -> int:
        """Connections turned away so far, on whatever port or socket, for whatever reason."""
        return sum(
            int(sample.value)
            for counter in (self.refusals, self.engine_refusals, self.http_refusals)
            for metric in counter.collect()
            for sample in metric.samples
            if sample.name.endswith("_total")
        )

    def render(self, report: Report, now: Moment) -> bytes:
        """What Prometheus reads: the counters, and gauges of this moment."""
        for state in PeerState:
            self.peers.labels(state.value).set(_count(report.peers, state))
        for pair_state in PreflightState:
            self.preflight.labels(pair_state.value).set(_count(report.preflight, pair_state))
        for transport in TRANSPORTS:
            self.transport.labels(transport).set(report.transport == transport)
        arena = report.arena
        for kind, nbytes in zip(
            ARENA_STATES, (arena.used, arena.unsettled, arena.bytes), strict=True
        ):
            self.arena.labels(kind).set(nbytes)
        self.inflight.set(report.inflight)
        self.engine.set(report.engine.connected)
        self.ready.set(report.ready)
        self.poisoned.set(now.poisoned_lanes)
        self.silence.set(now.longest_silence_s)
        self.reads_waiting.set(now.reads_waiting)
        self.late_settled.inc(now.late_settled - self._late_settled)
        self._late_settled = now.late_settled
        return generate_latest(self._registry)

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        return Counter(f"disagg_agent_{name}", text, labels, registry=self._registry)

    def _gauge(self, name: str, text: str, labels: tuple[str, ...]) -> Gauge:
        return Gauge(f"disagg_agent_{name}", text, labels, registry=self._registry)


def _count(rows: Iterable[PeerReport | PreflightReport], state: str) -> int:
    return sum(row.state == state for row in rows)
