"""How far what is on its way has come, and whether it still moves: pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from disagg_operator import names, render
from disagg_operator.api.quantities import duration_seconds
from disagg_operator.api.resource import Deployment
from disagg_operator.rollout import Refresh, RoleCounts, Targets


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far `target` has come, and since when (Unix seconds) it has come no further."""

    target: str
    step: int
    steps: int
    since: float
    stalled: bool = False


def progress_now(
    deployment: Deployment,
    roles: Mapping[str, RoleCounts],
    refreshes: Mapping[str, Refresh],
    *,
    reached: Targets,
    update: str,
    before: Progress | None,
    now: float,
) -> Progress | None:
    """None for a revision that is alone and was whole: what breaks later is no rollout."""
    old = any(role.old.present for role in roles.values())
    refreshing = not old and any(one.active for one in refreshes.values())
    target, step, steps = update, reached.step, reached.steps
    if refreshing:
        target = f"{update}+{_templates(deployment)}"
        step = sum(one.done for one in refreshes.values())
        steps = sum(len(one.groups) for one in refreshes.values())
    underway = before is not None and before.target == target
    begins = not any(role.new.present for role in roles.values())
    if not old and not refreshing and (step == steps or not (underway or begins)):
        return None
    moved = before is None or not underway or step > before.step
    since = now if moved or before is None else before.since
    stalled = now - since >= deadline_s(deployment)
    return Progress(target=target, step=step, steps=steps, since=since, stalled=stalled)


def deadline_s(deployment: Deployment) -> float:
    return duration_seconds(deployment.spec.rollout.progress_deadline)


def _templates(deployment: Deployment) -> str:
    """Of both roles; at most 10 characters, so that a target has no more than 16."""
    return "".join(render.template(deployment, role=role) for role in names.ROLES)
