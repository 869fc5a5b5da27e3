"""The main job, told as it happens: four hybrid models served disaggregated, then one state type lost.

For each model: apply the example, wait until Ready, complete a prompt through the router, and
compare the tokens with the same model in one process. Then one state type is withheld on purpose:
the client gets an error within the deadline, the resource says which type, pods and stage, and the
next request after the fault is lifted heals it. Exits non-zero when any part is not so.
"""

import json
import sys
import time
from collections.abc import Mapping
from typing import Any

import yaml

from disagg_scenarios import seen
from disagg_scenarios.kube import Kubectl, KubectlError, WaitTimeoutError, wait_for
from disagg_scenarios.progress import say, step
from disagg_scenarios.serving import NEW_TOKENS, Answer, generate, monolith
from disagg_scenarios.stage import EXAMPLES, Stage, StageError, install_operator, open_stage

NAMESPACE = "disagg-demo"
MODELS = ("tiny-qwen3-next", "tiny-gpt-oss", "tiny-deepseek-v32", "tiny-nemotron-h")
FAULTY = "tiny-qwen3-next"
WITHHELD = "mamba"
FAULT_DEADLINE_S = 3
# The router, two HTTP hops and kubectl's port-forward around the transfer's own deadline.
CLIENT_SLACK_S = 3.0
# Cold start of two engines and a router on two cores: 40-90 s measured; a new machine may be slower.
READY_S = 420.0
STATUS_S = 10.0


class DemoError(Exception):
    """Something is not as the demo tells it."""


def main() -> int:
    """Run the demo; 0 when every part went as told."""
    started = time.monotonic()
    try:
        lines = play()
    except (DemoError, StageError, KubectlError, WaitTimeoutError) as failed:
        print(f"demo: FAILED: {failed}", file=sys.stderr, flush=True)
        return 1
    print(f"\ndemo: all as told, in {time.monotonic() - started:.0f} s")
    print("\n".join(lines))
    return 0


def play() -> list[str]:
    """The whole demo; returns one line per model."""
    with step("cluster up, images loaded"):
        stage = open_stage()
    with step("helm install disagg"):
        say(install_operator(stage))
    kubectl = stage.namespace(NAMESPACE)
    with step(f"namespace {NAMESPACE}"):
        say(_own_namespace(stage))
    lines = [serve(kubectl, model) for model in MODELS]
    with step("kubectl get ddep"):
        say(kubectl.run("get", "ddep"))
    lose_one_state(kubectl)
    with step("kubectl get ddep -o wide"):
        say(kubectl.run("get", "ddep", "-o", "wide"))
    return lines


def _own_namespace(stage: Stage) -> str:
    manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    return stage.namespace("default").apply(manifest)


def serve(kubectl: Kubectl, name: str) -> str:
    """Apply one example, complete a prompt, compare; returns the line that sums it up."""
    with step(f"kubectl apply -f examples/{name}.yaml; kubectl wait --for=condition=Ready"):
        say(kubectl.run("apply", "-f", str(EXAMPLES / f"{name}.yaml")))
        wait_ready(kubectl, name)
    before = seen.moved_bytes(kubectl.get("ddep", name))
    with step(f"{name}: completion through the router"):
        answer = generate(kubectl, name)
        say(f"HTTP {answer.status}, tokens {list(answer.tokens)}")
    with step(f"{name}: the same prompt in one process"):
        expected = monolith(kubectl, decode_pod(kubectl, name), example_model(name))
        say(f"tokens {list(expected)}")
    if len(expected) != NEW_TOKENS or answer.tokens != expected:
        raise DemoError(f"{name}: tokens differ from the single process: {answer} != {expected}")
    moved = await_bytes(kubectl, name, before)
    return f"ok {name}: {NEW_TOKENS}/{NEW_TOKENS} tokens equal; {moved}"


def wait_ready(kubectl: Kubectl, name: str) -> Mapping[str, Any]:
    """kubectl wait, by hand, so that the reason is known when it does not come."""
    return wait_for(
        f"{name} Ready",
        lambda: kubectl.get("ddep", name),
        lambda found: seen.is_true(found, "Ready"),
        READY_S,
    )


def wait_members(kubectl: Kubectl, name: str) -> None:
    """Wait until both roles and the router are back, whatever the last transfer came to."""
    wait_for(
        f"{name}: prefill, decode and router ready",
        lambda: kubectl.get("ddep", name),
        lambda found: all(
            seen.is_true(found, kind) for kind in ("PrefillReady", "DecodeReady", "RouterReady")
        ),
        READY_S,
    )


def await_bytes(kubectl: Kubectl, name: str, before: Mapping[str, int]) -> str:
    """Wait until every state type of the model shows that more bytes moved; returns them as text."""
    types = example(name)["spec"]["model"]["stateTypes"]
    found = wait_for(
        f"{name}: bytes moved for {types}",
        lambda: seen.moved_bytes(kubectl.get("ddep", name)),
        lambda now: all(now.get(kind, 0) > before.get(kind, 0) for kind in types),
        STATUS_S,
    )
    text = ", ".join(f"{kind} {found[kind] - before.get(kind, 0)} B" for kind in types)
    say(f"moved over NIXL: {text}")
    return text


def example(name: str) -> dict[str, Any]:
    """The manifest of an example."""
    manifest: dict[str, Any] = yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text())
    return manifest


def example_model(name: str) -> str:
    """The model an example serves."""
    source: str = example(name)["spec"]["model"]["source"]
    return source


def role_pod(kubectl: Kubectl, name: str, role: str) -> str:
    """The first pod of a role of the serving revision."""
    revision = kubectl.get("ddep", name)["status"]["currentRevision"]
    pods = kubectl.select("pods", f"disagg.dev/deployment={name}")
    return seen.pods_of(list(pods), role, revision)[0]


def decode_pod(kubectl: Kubectl, name: str) -> str:
    """The first decode pod of the serving revision."""
    return role_pod(kubectl, name, "decode")


def lose_one_state(kubectl: Kubectl) -> None:
    """Withhold one state type on purpose, see it told, lift the fault, see it heal."""
    with step(f"{FAULTY}: allow the fault switch, {WITHHELD} deadline {FAULT_DEADLINE_S} s"):
        allow_fault(kubectl, FAULTY)
        wait_ready(kubectl, FAULTY)
        say(kubectl.run("get", "ddep", FAULTY))
    prefill, decode = (role_pod(kubectl, FAULTY, role) for role in ("prefill", "decode"))
    with step(f"{prefill}: disagg-agent fault withhold {WITHHELD}"):
        say(agent(kubectl, prefill, "fault", "withhold", WITHHELD))
    with step("a request whose mamba state never comes"):
        expect_timeout(kubectl, prefill, decode)
    with step("the Event"):
        say(await_event(kubectl, prefill, decode))
    with step(f"{prefill}: disagg-agent fault lift; the next request"):
        say(agent(kubectl, prefill, "fault", "lift"))
        expect_recovery(kubectl)


def allow_fault(kubectl: Kubectl, name: str) -> None:
    """Turn the fault switch on (off by default) and shorten one state type's deadline."""
    transfer = {
        "faultSwitch": "Enabled",
        "timeouts": {"stateTypes": {WITHHELD: f"{FAULT_DEADLINE_S}s"}},
    }
    patch = json.dumps({"spec": {"transfer": transfer}})
    say(kubectl.run("patch", "ddep", name, "--type=merge", "-p", patch))


def agent(kubectl: Kubectl, pod: str, *command: str) -> str:
    """disagg-agent in a pod's transfer agent."""
    return kubectl.exec(pod, "transfer-agent", "disagg-agent", *command)


def expect_timeout(kubectl: Kubectl, prefill: str, decode: str) -> None:
    """The client gets an error in time, then the resource names type, stage and both pods."""
    started = time.monotonic()
    answer = generate(kubectl, FAULTY)
    took, answered = time.monotonic() - started, time.monotonic()
    say(f"HTTP {answer.status} after {took:.1f} s: {answer.body.strip()}")
    refuse_tokens(answer)
    if took > FAULT_DEADLINE_S + CLIENT_SLACK_S:
        raise DemoError(f"the client waited {took:.1f} s for a {FAULT_DEADLINE_S} s deadline")
    found = wait_for(
        f"{FAULTY}: TransferHealthy=False naming {WITHHELD}",
        lambda: kubectl.get("ddep", FAULTY),
        lambda resource: names_loss(resource, prefill, decode),
        STATUS_S,
    )
    told = seen.condition(found, "TransferHealthy")
    say(f"told {time.monotonic() - answered:.1f} s later: {told.reason}: {told.message}")
    say(f"row: {json.dumps(seen.state_row(found, WITHHELD))}")
    say(kubectl.run("get", "ddep", FAULTY))


def refuse_tokens(answer: Answer) -> None:
    """An incomplete transfer must end in an error, never in tokens."""
    if answer.status < 400 or answer.tokens:
        raise DemoError(f"a request without its state was answered: {answer}")


def names_loss(resource: Mapping[str, Any], prefill: str, decode: str) -> bool:
    """The condition is False and names the type, both pods and the stage; the row agrees."""
    told = seen.condition(resource, "TransferHealthy")
    failure = seen.state_row(resource, WITHHELD).get("lastFailure", {})
    return (
        told.status == "False"
        and all(part in told.message for part in (WITHHELD, prefill, decode, "notify"))
        and failure.get("cause") == "Timeout"
        and failure.get("stage") == "notify"
        and (failure.get("prefillPod"), failure.get("decodePod")) == (prefill, decode)
    )


def await_event(kubectl: Kubectl, prefill: str, decode: str) -> str:
    """The Warning Event on the resource that names the type and both pods."""

    def told() -> list[str]:
        events = kubectl.select("events")
        return [
            f"{event['type']} {event['reason']}: {event['message']}"
            for event in events
            if event["involvedObject"]["name"] == FAULTY and event["type"] == "Warning"
        ]

    found = wait_for(
        f"an Event on {FAULTY} naming {WITHHELD}",
        told,
        lambda lines: any(names_all(line, WITHHELD, prefill, decode) for line in lines),
        STATUS_S,
    )
    return next(line for line in found if names_all(line, WITHHELD, prefill, decode))


def names_all(text: str, *parts: str) -> bool:
    """Every part occurs in the text."""
    return all(part in text for part in parts)


def expect_recovery(kubectl: Kubectl) -> None:
    """The next request is answered and the resource is healthy again."""
    answer = generate(kubectl, FAULTY)
    say(f"HTTP {answer.status}, tokens {list(answer.tokens)}")
    expected = monolith(kubectl, decode_pod(kubectl, FAULTY), example_model(FAULTY))
    if answer.tokens != expected:
        raise DemoError(f"after the fault was lifted: {answer} != {expected}")
    found = wait_for(
        f"{FAULTY}: TransferHealthy again",
        lambda: kubectl.get("ddep", FAULTY),
        lambda resource: (
            seen.is_true(resource, "TransferHealthy") and seen.is_true(resource, "Ready")
        ),
        STATUS_S,
    )
    healed = seen.condition(found, "TransferHealthy")
    say(f"TransferHealthy={healed.status} {healed.reason}: {healed.message}")


if __name__ == "__main__":
    sys.exit(main())
