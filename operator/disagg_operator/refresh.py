"""Pods that are made anew within their revision (R7), because the template of their role changed. Pure.

The groups of one role are replaced one after the other, under the bounds of a rollout: `surge`
further groups are made from the new template first, and an old one leaves only where enough others
are ready. It is taken off the router's list before its pods go, and comes back under its own name.
The other role is not touched. Further groups have indices from `SURGE_FROM` on, which no replica
has, so that they are told apart from replicas that a smaller number has left over.
"""

from collections.abc import Iterator

from disagg_operator import render
from disagg_operator.api.resource import Deployment
from disagg_operator.intents import Intent
from disagg_operator.observe import Observed
from disagg_operator.rollout import SURGE_FROM, Refresh
from disagg_operator.step import Step, deleted, present_groups, ready_among, rollout_bounds


def refresh(
    deployment: Deployment, observed: Observed, *, role: str, update: str, held: bool
) -> Refresh:
    """`held`: another revision is still there, or the last step took too long; then nothing is
    added, and nothing that serves is taken away.
    """
    asked = tuple(range(deployment.spec.role(role).replicas))
    present = present_groups(observed, role=role, revision=update)
    ready = ready_among(deployment, observed, role=role, revision=update)
    outdated = _outdated(deployment, observed, role=role, update=update)
    further = tuple(sorted(group for group in present if group >= SURGE_FROM))
    due = sum(group in outdated or group not in ready for group in asked)
    if not outdated and not (further and due):
        return Refresh(groups=asked, routed=asked, done=len(ready & set(asked)))
    surge, unavailable = _bounds(deployment, role=role)
    if not held:
        further = tuple(range(SURGE_FROM, SURGE_FROM + min(surge, due)))
    serving = ready & {*asked, *further}
    spare = 0 if held else max(0, len(serving) - (len(asked) - unavailable))
    leaving = frozenset(sorted(outdated & serving)[:spare])
    routed = tuple(sorted(serving - leaving)) if further or leaving else asked
    return Refresh(
        groups=(*asked, *further),
        routed=routed or asked,
        outdated=outdated,
        broken=frozenset() if held else outdated - ready,
        leaving=leaving,
        done=len(serving - outdated),
    )


def _outdated(
    deployment: Deployment, observed: Observed, *, role: str, update: str
) -> frozenset[int]:
    """Groups with a pod that is not made from the template as it is now."""
    wanted = render.template(deployment, role=role)
    pods = observed.role_pods(role, revision=update)
    return frozenset(pod.group for pod in pods if pod.template != wanted)


def _bounds(deployment: Deployment, *, role: str) -> tuple[int, int]:
    """Those of a rollout; none above where there is no room for them, and then one is missing."""
    surge, unavailable = rollout_bounds(deployment, role=role)
    recreates = deployment.spec.rollout.strategy == "Recreate"
    return (0, max(1, unavailable)) if recreates else (surge, unavailable)


def refreshed(step: Step, *, router_outdated: bool) -> Iterator[Intent]:
    """The pods of broken groups, and of leaving ones once no router process sends to them."""
    for role, one in step.refreshes.items():
        going = one.broken if router_outdated else one.broken | one.leaving
        for pod in step.observed.role_pods(role, revision=step.update):
            if pod.group in going and not pod.deleting:
                yield deleted(pod, f"the template of {role} changed")
