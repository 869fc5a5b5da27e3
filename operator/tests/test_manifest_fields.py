"""The real API server on names, on what cannot change, and on defaults."""

import pytest
from kubernetes import client

from disagg_operator import names

pytestmark = pytest.mark.api


@pytest.mark.parametrize("name", ["a" * 41, "1st", "with.dot"])
def test_a_name_that_pods_cannot_carry_is_refused(created, refusal, name):
    message = refusal(lambda: created({}, name=name))
    assert name in message
    assert "at most 40" in message


@pytest.mark.parametrize("name", ["a" * 40, "a", "tiny-1"])
def test_a_name_that_pods_can_carry_is_allowed(created, name):
    created({}, name=name)


@pytest.mark.parametrize("role", names.ROLES)
@pytest.mark.parametrize(("field", "value"), [("nodesPerReplica", 2), ("gpusPerNode", 4)])
def test_what_cannot_change_is_refused_with_both_values(api, refusal, role, field, value):
    objects = client.CustomObjectsApi(api)
    where = (names.GROUP, names.VERSION, "default", names.PLURAL)
    body = {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": "fixed"},
        "spec": {"model": {"source": "m"}, "engine": {"type": "custom", "image": "x"}},
    }
    objects.create_namespaced_custom_object(*where, body)
    try:
        patch = {"spec": {"roles": {role: {field: value}}}}
        message = refusal(lambda: objects.patch_namespaced_custom_object(*where, "fixed", patch))
    finally:
        objects.delete_namespaced_custom_object(*where, "fixed")
    assert f"{field} cannot change from" in message
    assert f"to {value}" in message
    assert f"spec.roles.{role}.{field}" in message


def test_the_server_shows_the_defaults_that_the_operator_assumes(created, deployment):
    spec = created({})["spec"]
    assert spec["roles"]["decode"]["replicas"] == 1
    assert spec["transfer"]["timeouts"]["default"] == "30s"
    assert spec["router"]["port"] == 8000
    bare = deployment()
    assert deployment(**{**spec, "model": spec["model"]}).spec == bare.spec
