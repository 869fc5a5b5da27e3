"""The readiness gates of pods with `preflight.mode: Required`: what opens and what closes them. Pure.

A gate opens when the newest sample of a pair that the pod is in arrived whole. It closes when
samples of it fail, or when decode has lost a prefill agent that still answers us. A sample that is
under way, or that nobody tells of any more, changes nothing: so an operator or an agent that starts
takes no pod out of service, and a new peer that does not answer yet holds nobody back. Whether the
peer's pod is Ready is never asked, or the two roles would wait for one another.

Where some pairs fail and others pass, as few pods as will do are held: those that nothing moves to
or from, then the one in most of the failing pairs, until no failing pair has both gates open.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from disagg_operator import names, render
from disagg_operator.intents import Intent, Tell
from disagg_operator.kinds import Kind
from disagg_operator.observe import AgentView, Observed
from disagg_operator.preflight import sampled_pairs
from disagg_operator.step import Step
from disagg_transfer.contract import PeerReport, PeerState, PreflightState, Report


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A prefill and a decode pod whose agents answer, and why state does not move between them."""

    prefill: str
    decode: str
    failure: str  # empty when it moves

    @property
    def pods(self) -> tuple[str, str]:
        return self.prefill, self.decode


def gate_intents(step: Step) -> Iterator[Intent]:
    pairs = tuple(judged_pairs(step.views, step.observed))
    held = held_pods(pairs)
    for name in sorted({pod for pair in pairs for pod in pair.pods}):
        pod, is_open = step.observed.pods[name], name not in held
        if pod.gate is None or pod.deleting or pod.gate == is_open:
            continue
        reason = names.GATE_REASON_MOVES if is_open else names.GATE_REASON_STUCK
        message = held.get(name, "a sample of every component's state arrived whole")
        body = render.pod_gate(
            step.deployment, pod=name, uid=pod.uid, is_open=is_open,
            reason=reason, message=message, now=step.now,
        )  # fmt: skip
        yield Tell(kind=Kind.POD, name=name, body=body, reason=f"{reason}: {message}")


def held_pods(pairs: Iterable[Pair]) -> Mapping[str, str]:
    """The pods whose gates must be closed, and the failure that speaks for it."""
    failing, moving = [], set[str]()
    for pair in pairs:
        if pair.failure:
            failing.append(pair)
        else:
            moving.update(pair.pods)
    held = {pod: pair.failure for pair in failing for pod in pair.pods if pod not in moving}
    while left := [pair for pair in failing if held.keys().isdisjoint(pair.pods)]:
        shares = Counter(pod for pair in left for pod in pair.pods)
        worst = min(shares, key=lambda pod: (-shares[pod], pod))
        held[worst] = next(pair.failure for pair in left if worst in pair.pods)
    return held


def judged_pairs(views: Mapping[str, AgentView], observed: Observed) -> Iterator[Pair]:
    """Pairs of which is known whether state moves, between two agents that both answer; none where
    no pod has a gate.

    A row names its prefill pod, and a pod that was replaced has the same name: it is the one that
    was sampled if decode has met the incarnation that reports from it.
    """
    if all(pod.gate is None for pod in observed.pods.values()):
        return
    rows = {(pair.row.pod, pair.decode): pair for pair in sampled_pairs(views, observed)}
    for prefill, decode, peer in _met(views, observed):
        pair = rows.get((prefill, decode))
        if peer.state is PeerState.DOWN:
            failure = f"decode pod {decode} lost prefill pod {prefill}: {peer.detail}"
            yield Pair(prefill=prefill, decode=decode, failure=failure)
        elif pair is not None and pair.row.state is not PreflightState.PENDING:
            passed = pair.row.state is PreflightState.PASSED
            yield Pair(prefill=prefill, decode=decode, failure="" if passed else pair.failure)


def _met(
    views: Mapping[str, AgentView], observed: Observed
) -> Iterator[tuple[str, str, PeerReport]]:
    """Prefill pod, decode pod, and what decode says of the process that now runs in the former."""
    answering = {pod: report for pod in observed.pods if (report := _report(views, pod))}
    for decode, report in answering.items():
        for peer in report.peers:
            prefill = answering.get(peer.pod)
            if prefill is not None and prefill.incarnation == peer.incarnation:
                yield peer.pod, decode, peer


def _report(views: Mapping[str, AgentView], pod: str) -> Report | None:
    """Of an agent that answers; what one said before it fell silent is no evidence."""
    view = views.get(pod)
    return view.report if view is not None and not view.error else None
