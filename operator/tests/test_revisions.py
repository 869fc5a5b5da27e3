"""A revision changes exactly when pods would."""

import pytest

from disagg_operator import render
from disagg_operator.render import Images


@pytest.fixture
def revision(deployment, images):
    def make(**spec):
        return render.revision(deployment(**spec), images=images)

    return make


SAME = {
    "more replicas": {"roles": {"prefill": {"replicas": 3}, "decode": {"replicas": 5}}},
    "paused": {"paused": True},
    "another router": {"router": {"replicas": 3, "args": ["--policy", "random"]}},
    "another rotation of keys": {"transfer": {"keyRotation": "24h"}},
    "defaults written out": {
        "engine": {"type": "reference", "port": 30000, "args": []},
        "roles": {
            "prefill": {"template": {"metadata": {"labels": {}}, "spec": {"containers": []}}}
        },
        "transfer": {"timeouts": {"default": "30s", "stages": {}}, "integrity": "Always"},
    },
}
OTHER = {
    "another model": {"source": "other"},
    "another state type": {"model": {"stateTypes": ["kv", "mamba"]}},
    "another image": {"engine": {"image": "other:1"}},
    "an argument of one role": {"roles": {"decode": {"args": ["--x"]}}},
    "a deadline": {"transfer": {"timeouts": {"default": "5s"}}},
    "the fault switch": {"transfer": {"faultSwitch": "Enabled"}},
    "another image of one role, by its overlay": {
        "roles": {
            "decode": {"template": {"spec": {"containers": [{"name": "engine", "image": "i"}]}}}
        }
    },
}
OF_ONE_ROLE = {
    "a label on pods": {"template": {"metadata": {"labels": {"a": "b"}}}},
    "a field of the pods that we have no type for": {
        "template": {"spec": {"nodeSelector": {"a": "b"}}}
    },
    "a container beside the engine": {"template": {"spec": {"containers": [{"name": "log"}]}}},
    "a variable": {"env": [{"name": "A", "value": "1"}]},
    "more memory": {"resources": {"limits": {"memory": "2Gi"}}},
}


@pytest.mark.parametrize("spec", SAME.values(), ids=SAME.keys())
def test_stays_where_pods_stay(revision, spec):
    assert revision(**spec) == revision()


@pytest.mark.parametrize("spec", OTHER.values(), ids=OTHER.keys())
def test_changes_where_pods_change(revision, spec):
    assert revision(**spec) != revision()


@pytest.mark.parametrize("spec", OF_ONE_ROLE.values(), ids=OF_ONE_ROLE.keys())
def test_what_pairs_as_before_changes_the_template_of_its_role_alone(revision, deployment, spec):
    assert revision(roles={"decode": spec}) == revision()
    changed = deployment(roles={"decode": spec})
    assert render.template(changed, role="prefill") == ""
    assert len(render.template(changed, role="decode")) == 5


def test_an_overlay_of_the_engine_is_no_template_of_one_role(deployment):
    overlay = {"spec": {"containers": [{"name": "engine", "image": "other"}]}}
    changed = deployment(roles={"decode": {"template": overlay}})
    assert render.template(changed, role="decode") == ""


def test_changes_with_the_operators_default_images(deployment, images):
    other = Images(agent="agent:2", engine=images.engine, router=images.router)
    assert render.revision(deployment(), images=other) != render.revision(
        deployment(), images=images
    )


def test_does_not_change_with_a_default_image_that_is_not_used(deployment, images):
    other = Images(agent=images.agent, engine="engine:2", router="router:2")
    own = deployment(engine={"image": "mine:1"})
    assert render.revision(own, images=other) == render.revision(own, images=images)


def test_is_five_letters_and_digits_that_never_read_as_a_number_or_a_word(revision):
    assert revision() == revision()
    assert len(revision()) == 5
    assert set(revision()) <= set("bcdfghjklmnpqrstvwxz2456789")
