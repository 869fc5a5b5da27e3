"""The router knows the workers of one revision; Services carry a hash of what they should be."""

import pytest

from disagg_operator import names, render


@pytest.fixture
def router(deployment, images):
    def make(**spec):
        return render.router_deployment(deployment(**spec), revision="abcde", images=images)

    return make


def container(router):
    return router["spec"]["template"]["spec"]["containers"][0]


def test_the_router_gets_every_group_of_its_revision_and_nothing_else(router):
    role = {"replicas": 2}
    text = " ".join(container(router(roles={"prefill": role, "decode": role}))["args"])
    for group in range(2):
        prefill = f"tiny-prefill-abcde-{group}-0.tiny-prefill-abcde.default.svc"
        decode = f"tiny-decode-abcde-{group}-0.tiny-decode-abcde.default.svc"
        assert f"--prefill http://{prefill}:30000 8998" in text
        assert f"--decode http://{decode}:30000" in text
    assert text.count("--prefill ") == text.count("--decode ") == 2


def test_the_manifests_arguments_come_last_so_that_they_win(router):
    args = container(router(router={"args": ["--policy", "cache_aware"]}))["args"]
    assert args[-2:] == ["--policy", "cache_aware"]


def test_a_deployment_at_zero_has_a_router_at_zero(router):
    zero = {"replicas": 0}
    assert router(roles={"prefill": zero, "decode": zero})["spec"]["replicas"] == 0
    assert router(router={"replicas": 2})["spec"]["replicas"] == 2


def test_the_service_leads_to_every_router_that_is_ready(deployment):
    service = render.router_service(deployment(router={"port": 9000}))
    assert service["metadata"]["name"] == "tiny"
    assert service["spec"]["selector"] == {
        names.LABEL_DEPLOYMENT: "tiny",
        names.LABEL_ROLE: "router",
    }
    assert service["spec"]["ports"][0]["port"] == 9000
    assert render.router_url(deployment(router={"port": 9000})) == "http://tiny.default.svc:9000"


@pytest.mark.parametrize("kind", ["external", "none"])
def test_there_is_no_address_without_a_router_of_ours(deployment, kind):
    assert render.router_url(deployment(router={"type": kind})) == ""


def test_names_of_pods_resolve_before_the_pods_are_ready(deployment):
    service = render.peer_service(deployment(), role="prefill", revision="abcde")
    assert service["metadata"]["name"] == "tiny-prefill-abcde"
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"]


def intent(found):
    return found["metadata"]["annotations"][names.ANNOTATION_INTENT]


def test_the_intents_hash_changes_with_the_intent_and_only_with_it(router):
    assert intent(router()) == intent(router())
    assert intent(router()) != intent(router(router={"args": ["--policy", "random"]}))


def test_the_keys_are_in_a_secret_that_a_rotation_may_change(deployment):
    secret = render.key_secret(deployment(), revision="abcde", keys=b"key")
    assert secret["metadata"]["name"] == "tiny-abcde-key"
    assert secret["data"] == {"key": "a2V5"}
    assert "immutable" not in secret
