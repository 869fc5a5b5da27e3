"""Who may reach which pod, and how many may be evicted."""

import pytest

from disagg_operator import names, render


def ports(rule):
    return [(item["port"], item.get("endPort")) for item in rule["ports"]]


def test_only_agents_of_the_deployment_reach_control_and_data_ports(deployment):
    spec = render.role_policy(deployment(transfer={"dataPorts": "22000-22999"}))["spec"]
    peers, routers, anybody = spec["ingress"]
    assert ports(peers) == [(8998, None), (22000, 22999)]
    roles = [item["podSelector"]["matchLabels"] for item in peers["from"]]
    assert roles == [
        {names.LABEL_DEPLOYMENT: "tiny", names.LABEL_ROLE: role} for role in names.ROLES
    ]
    assert ports(routers) == [(30000, None)]
    assert routers["from"][0]["podSelector"]["matchLabels"][names.LABEL_ROLE] == "router"
    assert (ports(anybody), "from" in anybody) == ([(9464, None)], False)


def test_engines_of_one_group_reach_each_other_on_any_port(deployment):
    wide = deployment(roles={"prefill": {"nodesPerReplica": 2}})
    peers = render.role_policy(wide)["spec"]["ingress"][0]
    assert "ports" not in peers
    assert len(peers["from"]) == 2


def test_engines_are_open_to_a_router_that_is_not_ours(deployment):
    external = deployment(router={"type": "external"})
    assert "from" not in render.role_policy(external)["spec"]["ingress"][1]


def test_policy_and_budget_select_the_pods_that_are_made(deployment, images):
    spec = deployment()
    pod = render.pod(spec, role="decode", group=0, rank=0, revision="abcde", images=images)
    own = pod["metadata"]["labels"]
    wanted = render.disruption_budget(spec, role="decode")["spec"]["selector"]["matchLabels"]
    assert wanted.items() <= own.items()
    selector = render.role_policy(spec)["spec"]["podSelector"]
    assert selector["matchLabels"].items() <= own.items()
    [expression] = selector["matchExpressions"]
    assert own[expression["key"]] in expression["values"]


@pytest.mark.parametrize(
    ("role", "least"),
    [
        ({"replicas": 3, "nodesPerReplica": 2}, 5),
        ({"replicas": 1}, 0),
        ({"replicas": 0}, 0),
    ],
)
def test_all_pods_of_a_role_but_one_must_stay(deployment, role, least):
    """Of a custom resource's pods the server counts none for maxUnavailable."""
    spec = deployment(
        roles={"decode": role, "prefill": {"replicas": role["replicas"]}},
        engine={"type": "custom", "image": "engine:2"},
    )
    budget = render.disruption_budget(spec, role="decode")["spec"]
    assert budget["minAvailable"] == least
    assert "maxUnavailable" not in budget
