"""The charts: what Helm renders in each shape, and what it does to a real API server."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from kubernetes import client, config
from kubernetes.client import models

from disagg_operator.api import crd

pytestmark = pytest.mark.api

CHARTS = Path(__file__).parents[2] / "charts"
# The answer to a patch is the whole object, also where nothing changes.
RIGHTS_TO_READ_SECRETS = {"get", "list", "watch", "patch", "*"}


@pytest.fixture(scope="module")
def helm():
    binaries = pytest.importorskip("disagg_cluster.binaries")
    program = binaries.ensure_binaries() / "helm"

    def run(*arguments, fails=False):
        done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done.stderr if fails else done.stdout

    return run


@pytest.fixture
def rendered(helm):
    def render(*settings):
        output = helm("template", "disagg", str(CHARTS / "disagg-operator"), *settings)
        return [found for found in yaml.safe_load_all(output) if found]

    return render


def kinds(objects):
    return sorted({found["kind"] for found in objects})


def of(objects, kind):
    return [item for item in objects if item["kind"] == kind]


def only(objects, kind):
    (found,) = of(objects, kind)
    return found


@pytest.mark.parametrize("chart", ["disagg-crds", "disagg-operator"])
def test_the_chart_is_clean(helm, chart):
    helm("lint", "--strict", str(CHARTS / chart))


def test_one_install_brings_the_resource_and_cluster_wide_rights(rendered):
    objects = rendered()
    assert "CustomResourceDefinition" in kinds(objects)
    assert "ClusterRoleBinding" in kinds(objects)
    assert [found["metadata"]["name"] for found in of(objects, "Role")] == ["disagg-leader"]


def test_named_namespaces_get_a_role_each_and_no_cluster_wide_right(rendered):
    objects = rendered("--set=watch.namespaces={team-a,team-b}", "--set=rbac.aggregate=false")
    roles = {role["metadata"]["namespace"]: role["rules"] for role in of(objects, "Role")}
    assert roles.keys() == {"team-a", "team-b", "default"}
    assert {name for rule in roles["default"] for name in rule["resources"]} == {
        "leases",
        "secrets",
    }
    assert not {"ClusterRole", "ClusterRoleBinding"} & set(kinds(objects))
    assert environment(objects)["DISAGG_WATCH_NAMESPACES"] == "team-a,team-b"


def test_the_resource_can_be_left_to_somebody_else(rendered):
    assert "CustomResourceDefinition" not in kinds(rendered("--set=crds.install=false"))


def environment(objects):
    (container,) = only(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    return {item["name"]: item["value"] for item in container["env"]}


def test_the_operator_is_told_the_images_of_the_pods_it_makes(rendered):
    settings = [f"--set=images.{name}=registry.test/{name}:9" for name in ("agent", "engine")]
    told = environment(rendered(*settings))
    assert told["DISAGG_AGENT_IMAGE"] == "registry.test/agent:9"
    assert told["DISAGG_ENGINE_IMAGE"] == "registry.test/engine:9"
    assert told["DISAGG_ROUTER_IMAGE"].startswith("docker.io/local/disagg-router:")


def test_the_operator_may_do_what_it_does_and_no_more(rendered):
    objects = rendered("--set=rbac.aggregate=false")
    rules = only(objects, "ClusterRole")["rules"]
    rights = {resource: set(rule["verbs"]) for rule in rules for resource in rule["resources"]}
    assert not any("*" in name for rule in rules for name in (*rule["apiGroups"], *rule["verbs"]))
    assert rights["secrets"] == {"create", "update"}
    assert not rights["pods"] & {"patch", "update"}
    assert not rights["disaggrolescalers"] & {"patch", "update"}, "numbers are somebody else's"
    assert set(rights) == {
        "disaggdeployments",
        "disaggdeployments/status",
        "disaggdeployments/finalizers",
        "disaggrolescalers",
        "disaggrolescalers/status",
        "pods",
        "pods/status",
        "services",
        "deployments",
        "poddisruptionbudgets",
        "networkpolicies",
        "secrets",
        "events",
    }


def test_pod_groups_may_be_created_where_volcano_is(rendered):
    rules = only(rendered("--set=rbac.volcano=true", "--set=rbac.aggregate=false"), "ClusterRole")
    (found,) = [rule for rule in rules["rules"] if rule["resources"] == ["podgroups"]]
    assert found["apiGroups"] == ["scheduling.volcano.sh"]
    assert found["verbs"] == ["create"]


def test_replicas_share_the_lease_that_the_operator_may_write(rendered):
    objects = rendered()
    assert environment(objects)["DISAGG_LEASE"] == "default/disagg"
    rules = only(objects, "Role")["rules"]
    named = {name: rule["verbs"] for rule in rules for name in rule.get("resourceNames", ())}
    assert named == {"disagg": ["get", "update"], "disagg-root-key": ["get"]}
    assert only(objects, "Deployment")["spec"]["replicas"] == 2
    assert not of(rendered("--set=replicas=1"), "PodDisruptionBudget")


def test_the_only_secret_that_may_be_read_is_the_root_of_the_keys(rendered):
    """And it is in the operator's own namespace."""
    objects = rendered("--set=rbac.aggregate=false")
    reading = [
        (role["kind"], role["metadata"].get("namespace"), rule.get("resourceNames"))
        for role in (*of(objects, "Role"), *of(objects, "ClusterRole"))
        for rule in role["rules"]
        if "secrets" in rule["resources"] and RIGHTS_TO_READ_SECRETS & set(rule["verbs"])
    ]
    assert reading == [("Role", "default", ["disagg-root-key"])]
    assert environment(objects)["DISAGG_ROOT_KEY"] == "default/disagg-root-key"


def test_kubernetes_own_models_know_every_field(rendered):
    for found in rendered("--set=imagePullSecrets={a}", "--set=podLabels.team=b"):
        if found["kind"] != "CustomResourceDefinition":
            getattr(models, f"V1{found['kind']}").model_validate(found)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("logLevel=loud", ["logLevel", "INFO"]),
        ("watch.namespaces={Team_A}", ["namespaces", "Team_A"]),
        ("typo=1", ["typo", "not allowed"]),
        ("images.agent=", ["images", "agent"]),
    ],
)
def test_a_wrong_value_is_refused_by_name(helm, setting, words):
    chart = str(CHARTS / "disagg-operator")
    refused = helm("template", "disagg", chart, f"--set={setting}", fails=True)
    missing = [word for word in words if word not in refused]
    assert not missing, refused


@pytest.fixture
def own_cluster():
    """An API server of its own: the shared one has the CRD already, and not from Helm."""
    cluster = pytest.importorskip("disagg_cluster")
    with (
        cluster.control_plane() as kubeconfig,
        config.new_client_from_config(str(kubeconfig)) as api,
    ):
        yield kubeconfig, client.ApiextensionsV1Api(api)


def test_the_server_lets_the_operator_read_its_root_key_and_no_other_secret(helm, own_cluster):
    kubeconfig, extensions = own_cluster
    chart, target = str(CHARTS / "disagg-operator"), [f"--kubeconfig={kubeconfig}"]
    helm("install", "disagg", chart, "--namespace=operators", "--create-namespace", *target)
    authorization = client.AuthorizationV1Api(extensions.api_client)

    def may(verb, name, namespace):
        asked = {
            "user": "system:serviceaccount:operators:disagg",
            "groups": ["system:serviceaccounts", "system:authenticated"],
            "resourceAttributes": {
                "verb": verb,
                "resource": "secrets",
                "name": name,
                "namespace": namespace,
            },
        }
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": asked,
        }
        return authorization.create_subject_access_review(review).status.allowed

    assert may("get", "disagg-root-key", "operators")
    assert may("create", "", "operators")
    for verb in ("create", "update"):
        assert may(verb, "tiny-abcde-key", "team-a")
    for name, namespace in (
        ("tiny-abcde-key", "team-a"),
        ("disagg-root-key", "team-a"),
        ("other", "operators"),
        ("", "team-a"),
    ):
        assert not [v for v in ("get", "list", "watch", "patch") if may(v, name, namespace)]


def test_an_upgrade_upgrades_the_resource_and_a_removal_keeps_it(helm, own_cluster, tmp_path):
    kubeconfig, extensions = own_cluster
    older = shutil.copytree(CHARTS / "disagg-operator", tmp_path / "older")
    template = older / "charts/disagg-crds/templates" / f"{crd.NAME}.yaml"
    template.write_text(template.read_text().replace("- ddep\n", "- older\n"))
    target = [f"--kubeconfig={kubeconfig}", "--namespace=default"]

    def short_names():
        return extensions.read_custom_resource_definition(crd.NAME).spec.names.short_names

    helm("install", "disagg", str(older), *target)
    assert short_names() == ["older"]
    helm("upgrade", "disagg", str(CHARTS / "disagg-operator"), *target)
    assert short_names() == ["ddep"]
    helm("uninstall", "disagg", *target)
    assert short_names() == ["ddep"]
