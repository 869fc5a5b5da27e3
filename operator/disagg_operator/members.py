"""The pods of one group of the update revision: made, replaced as one, or left alone. Pure."""

from collections.abc import Iterator
from dataclasses import replace

from disagg_operator import render
from disagg_operator.groups import STUCK_S, Group, Restart, broken, stuck
from disagg_operator.intents import CreatePod, Intent
from disagg_operator.step import Step, deleted


def group_intents(step: Step, *, role: str, group: int) -> Iterator[Intent]:
    found = step.members(role=role, group=group)
    there = {rank: pod for rank, pod in found.items() if pod is not None}
    members = Group(size=len(found), pods=there)
    yield from _freed(step, members)
    reason = broken(members, now=step.now)
    if reason:
        yield from _torn_down(step, members, key=(role, group), reason=reason)
        return
    _forgive(step, members, key=(role, group))
    # A group that is on its way out comes back as a whole.
    if members.missing and not any(pod.deleting for pod in members.pods.values()):
        yield from _made(step, members, role=role, group=group)


def _freed(step: Step, members: Group) -> Iterator[Intent]:
    for pod in members.pods.values():
        if stuck(pod, now=step.now):
            reason = "still there long after its grace period: its node is dead"
            yield replace(deleted(pod, reason), force=True)
        elif pod.deleted_at is not None:
            step.wakes.append(pod.deleted_at + STUCK_S)


def _torn_down(
    step: Step, members: Group, *, key: tuple[str, int], reason: str
) -> Iterator[Intent]:
    living = [pod for pod in members.pods.values() if not pod.deleting]
    if living:
        known = step.restarts.get(key)
        count = known.count + 1 if known else 1
        step.restarts[key] = Restart(count=count, at=step.now, reason=reason)
    for pod in living:
        yield replace(deleted(pod, reason), ended=True)


def _forgive(step: Step, members: Group, *, key: tuple[str, int]) -> None:
    known = step.restarts.get(key)
    if known is not None and members.whole:
        until = known.at + step.policy.reset_s
        step.wakes.append(until)
        if step.now >= until:
            del step.restarts[key]


def _made(step: Step, members: Group, *, role: str, group: int) -> Iterator[Intent]:
    known = step.restarts.get((role, group))
    due = known.due_at(step.policy) if known else step.now
    if due is None:
        return
    if due > step.now:
        step.wakes.append(due)
        return
    if members.pods:
        step.wakes.append(members.forming_until())
    for rank in members.missing:
        body = render.pod(
            step.deployment,
            role=role,
            group=group,
            rank=rank,
            revision=step.update,
            images=step.images,
        )
        yield CreatePod(name=body["metadata"]["name"], body=body, reason="missing")
