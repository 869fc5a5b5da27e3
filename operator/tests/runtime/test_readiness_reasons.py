import pytest

from disagg_operator import names
from disagg_operator.finding import Finding
from disagg_operator.kinds import Kind


def waiting(reason, message="why"):
    return {"waiting": {"reason": reason, "message": message}}


def ended(code, reason="Error", message=""):
    return {"terminated": {"exitCode": code, "reason": reason, "message": message}}


def break_engine(world, pod_statuses, **fields):
    pod = world.pod(world.prefill)
    pod["status"]["conditions"][1]["status"] = "False"
    pod["status"]["containerStatuses"] = [
        pod_statuses["container"]("engine", "engine:1", ready=False, **fields)
    ]


def test_everything_ready_is_ready(world):
    status = world.status()
    found = {condition.type: condition.status for condition in status.conditions}
    assert found == {
        "Ready": "True",
        "PrefillReady": "True",
        "DecodeReady": "True",
        "RouterReady": "True",
        "TransferHealthy": "Unknown",
        "PreflightPassed": "Unknown",
    }
    assert (status.phase, status.prefill, status.decode) == ("Ready", "1/1", "1/1")
    assert status.observed_generation == 1
    assert status.url == "http://tiny.default.svc:8000"


BROKEN = [
    ({"state": waiting("ImagePullBackOff")}, "ImagePullFailed", ["engine", "engine:1", "why"]),
    ({"state": waiting("ErrImagePull")}, "ImagePullFailed", ["ErrImagePull"]),
    ({"state": waiting("InvalidImageName")}, "ImagePullFailed", ["InvalidImageName"]),
    (
        {"state": waiting("CreateContainerConfigError", "no secret")},
        "ContainerConfigError",
        ["no secret"],
    ),
    (
        {"state": waiting("CrashLoopBackOff"), "lastState": ended(3), "restartCount": 2},
        "ContainerCrashed",
        ["exit code 3", "2 restarts", "kubectl logs"],
    ),
    ({"state": ended(1)}, "ContainerCrashed", ["exit code 1"]),
    (
        {"state": ended(1, message="Traceback\nno such model: x\n\n")},
        "ContainerCrashed",
        [": no such model: x;"],
    ),
    (
        {"state": waiting("CrashLoopBackOff"), "lastState": ended(137, "OOMKilled")},
        "OOMKilled",
        ["out of memory", "raise"],
    ),
    ({"state": waiting("ContainerCreating")}, "ContainerCreating", ["being created"]),
    ({}, "EngineStarting", ["is starting"]),
]


@pytest.mark.parametrize(("fields", "reason", "words"), BROKEN, ids=[row[1] for row in BROKEN])
def test_pod_that_is_not_ready_is_told_by_its_root_cause(
    world, pod_statuses, fields, reason, words
):
    break_engine(world, pod_statuses, **fields)
    status = world.status()
    [prefill] = [c for c in status.conditions if c.type == names.PREFILL_READY]
    assert (prefill.status, prefill.reason) == ("False", reason)
    assert all(word in prefill.message for word in [*words, world.prefill, "0 of 1"])
    assert (status.reason, status.message) == (reason, prefill.message)
    assert status.prefill == "0/1"


def test_unschedulable_pod_gives_the_schedulers_words(world):
    world.pod(world.decode)["status"] = {
        "phase": "Pending",
        "conditions": [
            {
                "type": "PodScheduled",
                "status": "False",
                "reason": "Unschedulable",
                "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu",
            }
        ],
    }
    condition = world.condition(names.DECODE_READY)
    assert condition.reason == "Unschedulable"
    assert "Insufficient nvidia.com/gpu" in condition.message


def agent_says(world, pod_statuses, reported, reason, *, pod=None):
    name = pod or world.decode
    pod = world.pod(name)
    pod["status"]["conditions"][1]["status"] = "False"
    pod["status"]["initContainerStatuses"] = [
        pod_statuses["container"]("transfer-agent", ready=False)
    ]
    world.tell(
        reported.report(name, ready=False, not_ready_reason=reason, not_ready_message="the details")
    )


def test_agent_that_is_not_ready_gives_its_own_reason(world, pod_statuses, reported):
    agent_says(world, pod_statuses, reported, "PeersNotMet")
    condition = world.condition(names.DECODE_READY)
    assert condition.reason == "AgentNotReady"
    assert "PeersNotMet: the details" in condition.message


def test_agent_that_waits_for_its_engine_is_an_engine_that_starts(world, pod_statuses, reported):
    agent_says(world, pod_statuses, reported, "EngineNotRegistered")
    assert world.condition(names.DECODE_READY).reason == "EngineStarting"


@pytest.mark.parametrize("role", ["prefill", "decode"])
@pytest.mark.parametrize("crashes", [False, True])
def test_refused_engine_is_told_by_pod_and_refusal_even_if_it_ends_of_it(
    world, pod_statuses, reported, role, crashes
):
    name = getattr(world, role)
    agent_says(world, pod_statuses, reported, "EngineRefused", pod=name)
    state = {"state": waiting("CrashLoopBackOff"), "lastState": ended(1), "restartCount": 1}
    world.pod(name)["status"]["containerStatuses"] = [
        pod_statuses["container"]("engine", ready=False, **(state if crashes else {}))
    ]
    kind = {"prefill": names.PREFILL_READY, "decode": names.DECODE_READY}[role]
    condition = world.condition(kind)
    assert condition.reason == "AgentNotReady"
    assert f"agent of pod {name} is not ready: EngineRefused: the details" in condition.message


def test_a_pod_whose_node_is_silent_names_the_node(world):
    """The node controller leaves all as the kubelet said it last, but for the one word."""
    status = world.pod(world.decode)["status"]
    status["conditions"] = [{"type": "Ready", "status": "False"}]
    world.pod(world.decode)["spec"]["nodeName"] = "h200-7"
    found = world.condition("DecodeReady")
    assert found.reason == "NodeUnreachable"
    assert f"node h200-7 of pod {world.decode} does not answer" in found.message


def test_a_kubelet_that_takes_readiness_away_answers(world):
    status = world.pod(world.decode)["status"]
    status["conditions"] = [
        {"type": "Ready", "status": "False", "reason": "ReadinessGatesNotReady"}
    ]
    assert world.condition("DecodeReady").reason != "NodeUnreachable"


def test_a_pod_that_the_cluster_takes_away_gives_the_clusters_words(world):
    pod = world.pod(world.decode)
    pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    pod["spec"]["nodeName"] = "h200-7"
    pod["status"]["conditions"].append(
        {"type": "DisruptionTarget", "status": "True", "message": "Taint manager: deleting"}
    )
    found = world.condition("DecodeReady")
    assert found.reason == "PodDisrupted"
    assert f"pod {world.decode} leaves node h200-7" in found.message
    assert "Taint manager: deleting" in found.message


def test_missing_pod_is_told(world):
    name = world.decode
    del world.cluster.objects[Kind.POD, name]
    condition = world.condition(names.DECODE_READY)
    assert condition.reason == "PodsMissing"
    assert name in condition.message


def test_root_cause_of_one_role_goes_before_the_consequence_in_another(world, pod_statuses):
    break_engine(world, pod_statuses, state=waiting("ImagePullBackOff"))
    world.pod(world.decode)["status"] = {"phase": "Pending"}
    assert world.status().reason == "ImagePullFailed"


def test_zero_replicas_are_not_ready_and_say_so(cluster, deployment, world):
    world.deployment = deployment(
        roles={"prefill": {"replicas": 0}, "decode": {"replicas": 0}},
    )
    cluster.converge(world.deployment)
    assert world.status().reason == "NoReplicas"
    assert world.condition(names.ROUTER_READY).reason == "NoReplicas"


def test_router_without_a_ready_pod_is_told(world):
    for body in world.cluster.of(Kind.DEPLOYMENT).values():
        body["status"]["readyReplicas"] = 0
    assert world.status().reason == "RouterUnavailable"


def test_router_whose_image_is_missing_gives_that_reason(world, pod_statuses):
    [router] = world.cluster.of(Kind.DEPLOYMENT).values()
    router["status"]["readyReplicas"] = 0
    labels = router["spec"]["template"]["metadata"]["labels"]
    container = pod_statuses["container"](
        "router", "router:1", ready=False, state=waiting("ErrImagePull")
    )
    world.cluster.objects[Kind.POD, "router-pod"] = {
        "metadata": {"name": "router-pod", "uid": "u", "namespace": "default", "labels": labels},
        "status": {"phase": "Pending", "containerStatuses": [container]},
    }
    condition = world.condition(names.ROUTER_READY)
    assert condition.reason == "ImagePullFailed"
    assert "router:1" in condition.message


def test_external_router_is_no_reason_to_be_unready(cluster, deployment, world):
    world.deployment = deployment(router={"type": "external"})
    cluster.converge(world.deployment)
    assert world.condition(names.ROUTER_READY).reason == "RouterDisabled"
    assert world.condition(names.READY).status == "True"


def test_rollout_under_way_is_not_ready_and_names_both_revisions(
    cluster, deployment, world, revision
):
    old = world.deployment
    world.deployment = deployment(engine={"args": ["--seed", "1"]}, generation=2)
    cluster.carry_out(cluster.decide(world.deployment))
    cluster.settle()
    status = world.status()
    assert status.reason == "RollingOut"
    assert revision(old) in status.message
    assert revision(world.deployment) in status.message
    assert (status.current_revision, status.update_revision) == (
        revision(old),
        revision(world.deployment),
    )
    assert status.observed_generation == 2


def test_paused_resource_that_is_not_ready_says_that_it_is_paused(cluster, deployment, world):
    world.deployment = deployment(paused=True)
    del cluster.objects[Kind.POD, world.decode]
    status = world.status()
    assert (status.phase, status.reason) == ("Paused", "Paused")
    assert "spec.paused" in status.message


def test_error_of_the_operator_goes_before_everything(world):
    world.error = Finding(truth="True", reason="Forbidden", message="create pods: no right")
    status = world.status()
    assert (status.phase, status.reason) == ("Degraded", "Forbidden")
    assert world.condition(names.DEGRADED).status == "True"
    world.error = None
    assert names.DEGRADED not in {c.type for c in world.status().conditions}


def test_transition_time_moves_only_with_the_status(world, pod_statuses):
    first = world.condition(names.PREFILL_READY)
    world.now += 100
    assert world.condition(names.PREFILL_READY) == first
    break_engine(world, pod_statuses, state=waiting("ImagePullBackOff"))
    broken = world.condition(names.PREFILL_READY)
    assert broken.last_transition_time > first.last_transition_time
    world.now += 100
    break_engine(world, pod_statuses, state=ended(1))
    crashed = world.condition(names.PREFILL_READY)
    assert crashed.reason != broken.reason
    assert crashed.last_transition_time == broken.last_transition_time


def test_restarts_are_counted_by_role(world, pod_statuses):
    break_engine(world, pod_statuses, restartCount=3)
    assert [role.restarts for role in world.status().roles] == [3, 0]
