import base64
from types import SimpleNamespace

import pytest

from disagg_operator.errors import AlreadyExistsError, ApiRejectedError
from disagg_operator.execute import Execution
from disagg_operator.expectations import LIMIT_S, Expectations
from disagg_operator.intents import CreatePod, Delete
from disagg_operator.kinds import Kind
from disagg_operator.root_key import GENERATION, RootKey

ROOT = RootKey(b"r" * 32)


class FakeWriter:
    """Keeps what is written, in order; `refuse` maps a name to the error it gets."""

    def __init__(self):
        self.calls, self.bodies, self.refuse = [], {}, {}
        self.after = lambda: None

    async def apply(self, kind, body):
        return self.write("apply", kind, body)

    async def create(self, kind, body):
        return self.write("create", kind, body)

    def write(self, verb, kind, body):
        name = body["metadata"]["name"]
        self.calls.append((verb, kind, name))
        self.after()
        if name in self.refuse:
            raise self.refuse[name]
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
        outcome = await Execution(
            writer=writer,
            deployment=found,
            observed=seen,
            expectations=state.expectations,
            clock=lambda: state.now,
            root=ROOT,
            stopped=lambda: state.stopped,
        ).run(plan or cluster.decide(found))
        cluster.keys |= outcome.keys
        return outcome

    state.run = run
    return state


async def test_services_come_before_the_key_and_the_key_before_the_pods(execution, writer):
    outcome = await execution.run()
    kinds = [kind for _, kind, _ in writer.calls]
    assert kinds[:3] == [Kind.SERVICE, Kind.SERVICE, Kind.SECRET]
    assert len(outcome.done) == 11
    assert not outcome.errors


async def test_key_belongs_to_the_revisions_service(execution, writer):
    await execution.run()
    [name] = [name for _, kind, name in writer.calls if kind is Kind.SECRET]
    [owner] = writer.bodies[name]["metadata"]["ownerReferences"]
    assert owner["kind"] == "Service"
    assert owner["uid"] == f"uid-of-{owner['name']}"
    keys = base64.b64decode(writer.bodies[name]["data"]["key"])
    assert keys == ROOT.key_file(owner["uid"], generation=GENERATION)


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


async def test_key_that_exists_is_not_taken_for_ours(execution, writer, cluster, deployment):
    name = cluster.decide(deployment()).stages[1][0].name
    writer.refuse[name] = AlreadyExistsError("taken", code=409)
    assert (await execution.run()).keys == set()


async def test_pass_before_the_watch_creates_nothing_twice(
    execution, writer, cluster, deployment, images
):
    from disagg_operator.plan import decide

    outcome = await execution.run()
    seen = execution.expectations.overlay(cluster.observed(deployment()), now=1.0)
    assert (
        decide(
            deployment(),
            seen,
            images=images,
            keys=frozenset(outcome.keys),
            restarts={},
            progress=None,
            views={},
            now=1.0,
        ).intents
        == ()
    )


async def test_expectation_that_the_watch_never_meets_is_dropped(execution, cluster, deployment):
    await execution.run()
    late = execution.expectations.overlay(cluster.observed(deployment()), now=LIMIT_S + 0.1)
    assert not late.pods
    assert execution.expectations.next_deadline() is None


async def test_deleted_pod_counts_as_terminating_until_it_is_gone(execution, cluster, deployment):
    cluster.converge(deployment())
    pod = next(iter(cluster.observed(deployment()).pods.values()))
    gone = Delete(kind=Kind.POD, name=pod.name, uid=pod.uid, reason="test")
    plan = SimpleNamespace(stages=((gone,),))
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
