"""The condition FabricReady: whether state really moves over RDMA, where that is asked for. Pure.

Nothing is asked by the policies Any and TCP, so there is no such condition then. PreferRDMA tells of
a fallback and holds nothing back. With RequireRDMA the agents themselves are not ready, and this is
the root cause of it. The words on why are the agents' own.
"""

from collections.abc import Mapping

from disagg_operator import names
from disagg_operator.api.resource import Deployment
from disagg_operator.finding import Finding, Weight
from disagg_operator.observe import AgentView, Observed
from disagg_operator.render import transport_policy
from disagg_transfer.contract import Report, Transport, TransportPolicy


def fabric_finding(
    deployment: Deployment, views: Mapping[str, AgentView], observed: Observed
) -> Finding | None:
    """None where RDMA is not asked for."""
    policy = transport_policy(deployment)
    if policy is TransportPolicy.ANY:
        return None
    reports = {
        pod: view.report
        for pod, view in sorted(views.items())
        if pod in observed.pods and view.report is not None
    }
    without = {pod: report for pod, report in reports.items() if _falls_back(report)}
    if without:
        return _fallback(without, of=len(reports), required=policy is TransportPolicy.REQUIRE_RDMA)
    if not any(report.transport == Transport.RDMA for report in reports.values()):
        return Finding(
            truth="Unknown",
            reason=names.REASON_NO_DATA,
            message="no agent has said yet what its reads go over",
        )
    return Finding(
        truth="True", reason=names.REASON_FABRIC_READY, message="reads go over RDMA at every agent"
    )


def _falls_back(report: Report) -> bool:
    """Agents give a reason as soon as they know that it is not RDMA, or not all the way."""
    return bool(report.transport_reason)


def _fallback(without: Mapping[str, Report], *, of: int, required: bool) -> Finding:
    pod, report = next(iter(without.items()))
    mixed = len(without) < of and not required
    reason = names.REASON_MIXED_FABRIC if mixed else names.REASON_NO_RDMA
    message = (
        f"{len(without)} of {of} agents do not use RDMA; pod {pod} uses {report.transport}:"
        f" {report.transport_reason}"
    )
    weight = Weight.PLACEMENT if required else Weight.NONE
    return Finding(truth="False", reason=reason, message=message, weight=weight)
