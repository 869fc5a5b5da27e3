"""An operator of two namespaces, one of which is closed to it: a real process, a real API server."""

import functools
import uuid
from pathlib import Path

import pytest
import yaml
from kubernetes import client

from disagg_fleet import OperatorProcess
from disagg_operator import names

pytestmark = pytest.mark.api

EXAMPLE = Path(__file__).parents[3] / "examples" / "tiny-qwen3-next.yaml"
KIND = (names.GROUP, names.VERSION)
WITHIN_S = 45.0  # a closed watch, kopf's and ours, is asked for again within 10 s


class Site:
    """Two namespaces, and an account that the server lets into the first."""

    def __init__(self, api, kubeconfig, folder):
        self.core, self.custom = client.CoreV1Api(api), client.CustomObjectsApi(api)
        self.rights = client.RbacAuthorizationV1Api(api)
        self.kubeconfig, self.log = folder / "kubeconfig", folder / "log"
        self.open, self.closed = (f"{word}-{uuid.uuid4().hex[:8]}" for word in ("open", "closed"))
        for namespace in (self.open, self.closed):
            self.core.create_namespace({"metadata": {"name": namespace}})
        self.core.create_namespaced_service_account(self.open, {"metadata": {"name": "operator"}})
        made = self.core.create_namespaced_service_account_token(
            "operator", self.open, {"spec": {}}
        )
        content = yaml.safe_load(Path(kubeconfig).read_text())
        for user in content["users"]:
            user["user"] = {"token": made.status.token}
        self.kubeconfig.write_text(yaml.safe_dump(content))
        self.let_in(self.open)

    def let_in(self, namespace):
        role = {
            "apiGroup": "rbac.authorization.k8s.io",
            "kind": "ClusterRole",
            "name": "cluster-admin",
        }
        account = {"kind": "ServiceAccount", "name": "operator", "namespace": self.open}
        binding = {"metadata": {"name": "operator"}, "roleRef": role, "subjects": [account]}
        self.rights.create_namespaced_role_binding(namespace, binding)

    def apply(self, namespace):
        self.custom.create_namespaced_custom_object(
            *KIND, namespace, names.PLURAL, yaml.safe_load(EXAMPLE.read_text())
        )

    def pods(self, namespace):
        return self.core.list_namespaced_pod(namespace).items


@pytest.fixture
def site(api, kubeconfig, tmp_path):
    return Site(api, kubeconfig, tmp_path)


def test_a_closed_namespace_is_told_and_the_other_is_served_until_it_opens(site, eventually):
    soon = functools.partial(eventually, within_s=WITHIN_S)
    both = f"{site.open},{site.closed}"
    with OperatorProcess(site.kubeconfig, namespace=both, log=site.log) as operator:
        for namespace in (site.open, site.closed):
            site.apply(namespace)
        soon(lambda: site.pods(site.open), what="the open namespace is served")
        refusal = f'cannot list resource "pods" in API group "" in the namespace "{site.closed}"'
        soon(lambda: refusal in operator.ask("/readyz")[1], what="what is refused is told")
        assert operator.ask("/readyz")[0] == 503
        assert operator.ask("/healthz") == (200, "ok\n")
        assert operator.metric("disagg_operator_refused_watches") > 0
        assert not site.pods(site.closed)
        site.let_in(site.closed)
        soon(lambda: site.pods(site.closed), what="the namespace that has opened is served")
        soon(lambda: operator.ask("/readyz")[0] == 200, what="nothing is refused any more")
        assert operator.process.poll() is None
