"""Carries out a plan: the only writer of children."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, assert_never

from disagg_operator import render
from disagg_operator.api.resource import Deployment
from disagg_operator.errors import (
    AlreadyExistsError,
    ApiError,
    ApiNotFoundError,
    ApiRejectedError,
    GangNotServedError,
)
from disagg_operator.expectations import Expectations
from disagg_operator.intents import (
    Apply,
    CreatePod,
    CreateScaler,
    Delete,
    EnsureGang,
    Intent,
    Tell,
    WriteKeys,
)
from disagg_operator.kinds import Json, Kind
from disagg_operator.observe import Observed
from disagg_operator.plan import Plan
from disagg_operator.root_key import RootKey

_INVALID = 422  # what is immutable cannot be changed
logger = logging.getLogger(__name__)


class Writer(Protocol):
    """The part of the gateway that a plan needs."""

    async def apply(self, kind: Kind, body: Json) -> Json: ...
    async def apply_status(self, body: Json, *, kind: Kind) -> Json: ...
    async def create(self, kind: Kind, body: Json) -> Json: ...
    async def replace(self, kind: Kind, body: Json) -> Json: ...
    async def delete(
        self, kind: Kind, *, namespace: str, name: str, uid: str, force: bool
    ) -> None: ...


@dataclass(slots=True)
class Outcome:
    """What came of a plan. `keys` has the newest key of each revision whose file was written now;
    `kept` are those of them whose Secret of before cannot be changed. `gangs` are PodGroups created now.
    """

    done: list[Intent] = field(default_factory=list)
    errors: list[ApiError] = field(default_factory=list)
    keys: dict[str, str] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)
    gangs: set[str] = field(default_factory=set)


@dataclass(slots=True, kw_only=True)
class Execution:
    """One plan on its way. `stopped` is asked before every write: a resource that is being
    deleted gets no more children.
    """

    writer: Writer
    deployment: Deployment
    observed: Observed
    expectations: Expectations
    clock: Callable[[], float]
    root: RootKey
    stopped: Callable[[], bool]
    outcome: Outcome = field(default_factory=Outcome)
    _service_uids: dict[str, str] = field(default_factory=dict)

    async def run(self, plan: Plan) -> Outcome:
        """Stage by stage; a stage with an error ends the plan, since later ones build on it."""
        for stage in plan.stages:
            await self._stage(stage)
            if self.outcome.errors or self.stopped():
                break
        return self.outcome

    async def _stage(self, stage: Sequence[Intent]) -> None:
        await asyncio.gather(*(self._guarded(intent) for intent in stage))

    async def _guarded(self, intent: Intent) -> None:
        if self.stopped():
            return
        try:
            if await self._carry_out(intent):
                self.outcome.done.append(intent)
        except ApiError as error:
            self.outcome.errors.append(error)

    def _carry_out(self, intent: Intent) -> Awaitable[bool]:
        match intent:
            case Apply():
                return self._apply(intent)
            case CreatePod() | CreateScaler():
                kind = Kind.POD if isinstance(intent, CreatePod) else Kind.SCALER
                return self._create(kind, intent.body)
            case Tell():
                return self._tell(intent)
            case WriteKeys():
                return self._write_keys(intent)
            case EnsureGang():
                return self._ensure_gang(intent)
            case Delete():
                return self._delete(intent)
            case _:
                assert_never(intent)

    async def _apply(self, intent: Apply) -> bool:
        answer = await self.writer.apply(intent.kind, intent.body)
        self.expectations.written(intent.kind, answer, now=self.clock())
        if intent.kind is Kind.SERVICE:
            self._service_uids[intent.name] = answer["metadata"]["uid"]
        return True

    async def _create(self, kind: Kind, body: Json) -> bool:
        """A name that is taken is either ours, on its way through the watch, or that of an object
        of a deleted resource; its end wakes us.
        """
        try:
            answer = await self.writer.create(kind, body)
        except AlreadyExistsError:
            return False
        self.expectations.written(kind, answer, now=self.clock())
        return True

    async def _tell(self, intent: Tell) -> bool:
        answer = await self.writer.apply_status(intent.body, kind=intent.kind)
        self.expectations.written(intent.kind, answer, now=self.clock())
        return True

    async def _write_keys(self, intent: WriteKeys) -> bool:
        """The Secret is written whole, without having been read."""
        owner = self._service_owner(intent.service)
        keys = self.root.key_file(owner["uid"], generation=intent.generation)
        body = render.key_secret(self.deployment, revision=intent.revision, keys=keys)
        body["metadata"]["ownerReferences"] = [owner]
        try:
            await self.writer.create(Kind.SECRET, body)
        except AlreadyExistsError:
            if not await self._replace_keys(intent, body):
                return False
        key = self.root.key_id(owner["uid"], generation=intent.generation)
        self.outcome.keys[intent.revision] = key
        return True

    async def _replace_keys(self, intent: WriteKeys, body: Json) -> bool:
        try:
            await self.writer.replace(Kind.SECRET, body)
        except ApiNotFoundError:
            return False  # of a deleted resource, and gone just now
        except ApiRejectedError as error:
            if error.code != _INVALID:
                raise
            # Immutable, as older operators made them: its pods keep their key until a rollout.
            logger.warning("%s stays as it is: %s", intent.name, error)
            self.outcome.kept.add(intent.revision)
        return True

    async def _ensure_gang(self, intent: EnsureGang) -> bool:
        owned = {
            **intent.body["metadata"],
            "ownerReferences": [self._service_owner(intent.service)],
        }
        try:
            await self.writer.create(Kind.POD_GROUP, {**intent.body, "metadata": owned})
        except AlreadyExistsError:
            return False
        except ApiNotFoundError as error:
            kind = f"{Kind.POD_GROUP.kind} of {Kind.POD_GROUP.api_version}"
            raise GangNotServedError(
                f"spec.scheduling.gang is Volcano, and the API server serves no {kind}: install"
                " Volcano, or set it to None; no pod is made until then",
                code=error.code,
                reason=error.reason,
            ) from error
        self.outcome.gangs.add(intent.name)
        return True

    def _service_owner(self, name: str) -> Json:
        """Keys and PodGroups go with their revision's Service; we need no right to delete them."""
        known = self.observed.services.get(name)
        uid = self._service_uids.get(name) or (known.uid if known else "")
        return {"apiVersion": "v1", "kind": "Service", "name": name, "uid": uid}

    async def _delete(self, intent: Delete) -> bool:
        await self.writer.delete(
            intent.kind,
            namespace=self.deployment.namespace,
            name=intent.name,
            uid=intent.uid,
            force=intent.force,
        )
        self.expectations.deleted(intent.kind, intent.name, uid=intent.uid, now=self.clock())
        return True
