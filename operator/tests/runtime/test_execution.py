import base64
from types import SimpleNamespace

import pytest

from disagg_operator.errors import AlreadyExistsError, ApiNotFoundError, ApiRejectedError
from disagg_operator.execute import Execution
from disagg_operator.expectations import LIMIT_S, Expectations
from disagg_operator.intents import CreatePod, Delete
from disagg_operator.kinds import Kind
from disagg_operator.plan import Plan, decide


class FakeWriter:
    """Keeps what is written, in order; `refuse` maps a name to the error it gets."""

    def __init__(self):
        self.calls, self.bodies, self.refuse = [], {}, {}
        self.after = lambda: None

    async def apply(self, kind, body):
        return self.write("apply", kind, body)

    async def replace(self, kind, body):
        return self.write("replace", kind, body)

    async def create(self, kind, body):
        return self.write("create", kind, body)

    def write(self, verb, kind, body):
        name = body["metadata"]["name"]
        self.calls.append((verb, kind, name))
        self.after()
        refused = self.refuse.get((verb, name)) or self.refuse.get(name)
        if refused:
            raise refused
        self.bodies[name] = body
        return {**body, "metadata": {**body["metadata"], "uid": f"uid-of-{name}"}}

    async def delete(self, kind, *, namespace, name, uid, force):
        self.calls.append(("delete", kind, name))


@pytest.fixture
def writer():
    return FakeWriter()


@pytest.fixture
def execution(cluster, deployment, writer):
    state = SimpleNamespace(stopped=False, now=0.0, expectations=Expectations())

    async def run(plan=None):
        found = deployment()
        seen = state.expectations.overlay(cluster.observed(found), now=state.now)
        plan = plan or cluster.decide(found)
        outcome = await Execution(
            writer=writer,
            deployment=found,
            observed=seen,
            expectations=state.expectations,
            clock=lambda: state.now,
            root=cluster.root,
            stopped=lambda: state.stopped,
        ).run(plan)
        written, kept = outcome.keys, outcome.kept
        cluster.keys = plan.keys_after(cluster.keys, written=written, kept=kept, now=state.now)
        return outcome

    state.run = run
    return state


async def test_services_come_before_the_key_and_the_key_before_the_pods(execution, writer):
    outcome = await execution.run()
    kinds = [kind for _, kind, _ in writer.calls]
    assert kinds[:3] == [Kind.SERVICE, Kind.SERVICE, Kind.SECRET]
    assert len(outcome.done) == 11
    assert not outcome.errors


async def test_key_belongs_to_the_revisions_service(execution, writer, cluster):
    await execution.run()
    [name] = [name for _, kind, name in writer.calls if kind is Kind.SECRET]
    [owner] = writer.bodies[name]["metadata"]["ownerReferences"]
    assert owner["kind"] == "Service"
    assert owner["uid"] == f"uid-of-{owner['name']}"
    keys = base64.b64decode(writer.bodies[name]["data"]["key"])
    assert keys == cluster.root.key_file(owner["uid"], generation=1)


async def test_error_of_a_stage_ends_the_plan(execution, writer, cluster, deployment):
    first = cluster.decide(deployment()).stages[0][0]
    writer.refuse[first.name] = ApiRejectedError("no", code=422)
    outcome = await execution.run()
    assert [str(error) for error in outcome.errors] == ["no"]
    assert {kind for _, kind, _ in writer.calls} == {Kind.SERVICE}


async def test_nothing_is_written_once_deletion_is_seen(execution, writer):
    def stop():
        execution.stopped = True

    writer.after = stop
    await execution.run()
    assert len(writer.calls) == 1


async def test_name_that_is_taken_is_no_error_and_not_done(execution, writer, cluster, deployment):
    plan = cluster.decide(deployment())
    pods = [i.name for i in plan.intents if isinstance(i, CreatePod)]
    writer.refuse = {name: AlreadyExistsError("taken", code=409) for name in pods}
    outcome = await execution.run()
    assert not outcome.errors
    assert not [i for i in outcome.done if isinstance(i, CreatePod)]


@pytest.fixture
def secret(cluster, deployment):
    """The name of the key Secret."""
    (intent,) = cluster.decide(deployment()).stages[1]
    return intent.name


async def test_a_secret_of_that_name_is_replaced_unread(execution, writer, secret, cluster):
    writer.refuse["create", secret] = AlreadyExistsError("taken", code=409)
    outcome = await execution.run()
    assert [verb for verb, _, name in writer.calls if name == secret] == ["create", "replace"]
    assert not outcome.errors
    assert cluster.keys.key in outcome.keys.values()


async def test_a_secret_that_has_just_gone_is_made_in_the_next_pass(
    execution, writer, secret, cluster
):
    writer.refuse["create", secret] = AlreadyExistsError("taken", code=409)
    writer.refuse["replace", secret] = ApiNotFoundError("gone", code=404)
    outcome = await execution.run()
    assert not outcome.errors
    assert cluster.keys is None
    writer.refuse = {}
    await execution.run()
    assert cluster.keys.generation == 1


async def test_an_immutable_secret_of_an_older_operator_is_left_and_not_tried_every_pass(
    execution, writer, secret, cluster, deployment
):
    writer.refuse["create", secret] = AlreadyExistsError("taken", code=409)
    writer.refuse["replace", secret] = ApiRejectedError("immutable", code=422)
    outcome = await execution.run()
    assert not outcome.errors
    assert outcome.kept == outcome.keys.keys()
    seen = execution.expectations.overlay(cluster.observed(deployment()), now=1.0)
    assert decide_again(cluster, deployment(), seen).intents == ()


def decide_again(cluster, deployment, observed, **fields):
    return decide(
        deployment,
        observed,
        images=cluster.images,
        keys=cluster.keys,
        keys_at=cluster.keys_at,
        root=cluster.root,
        restarts={},
        progress=None,
        views={},
        now=fields.get("now", 1.0),
    )


async def test_pass_before_the_watch_creates_nothing_twice(execution, cluster, deployment):
    await execution.run()
    seen = execution.expectations.overlay(cluster.observed(deployment()), now=1.0)
    assert decide_again(cluster, deployment(), seen).intents == ()


async def test_expectation_that_the_watch_never_meets_is_dropped(execution, cluster, deployment):
    await execution.run()
    late = execution.expectations.overlay(cluster.observed(deployment()), now=LIMIT_S + 0.1)
    assert not late.pods
    assert execution.expectations.next_deadline() is None


async def test_deleted_pod_counts_as_terminating_until_it_is_gone(execution, cluster, deployment):
    cluster.converge(deployment())
    pod = next(iter(cluster.observed(deployment()).pods.values()))
    gone = Delete(kind=Kind.POD, name=pod.name, uid=pod.uid, reason="test")
    plan = Plan(update_revision="", serving_revision="", stages=((gone,),))
    await execution.run(plan)
    seen = execution.expectations.overlay(cluster.observed(deployment()), now=0.0)
    assert seen.pods[pod.name].deleting
    del cluster.objects[Kind.POD, pod.name]
    assert (
        pod.name not in execution.expectations.overlay(cluster.observed(deployment()), now=0.0).pods
    )


async def test_watch_that_has_caught_up_wins_over_what_was_expected(
    execution, writer, cluster, deployment
):
    await execution.run()
    cluster.converge(deployment())
    observed = cluster.observed(deployment())
    assert execution.expectations.overlay(observed, now=0.0) == observed
