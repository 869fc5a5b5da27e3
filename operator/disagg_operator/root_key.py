"""The key that every deployment's keys are made from.

A key is HMAC(root, Service of its revision, generation), so that the operator can make it again
without the right to read the Secret it is in. The root is in a Secret beside the operator, which
survives restarts and is the same for all replicas. A revision that begins anew has a new Service,
and with it new keys.
"""

import base64
import binascii
import hmac
import secrets
from dataclasses import dataclass, field
from typing import Final, Protocol, Self

from disagg_operator.errors import AlreadyExistsError, ApiNotFoundError, SettingsError
from disagg_operator.kinds import Json, Kind
from disagg_transfer.contract import key_id, report_token

KEY_BYTES: Final = 32
ENTRY: Final = "root"  # of the Secret's data


@dataclass(frozen=True, slots=True)
class RootKey:
    """`service_uid` is that of the revision's prefill Service, whose end is the keys' end too."""

    _root: bytes = field(repr=False)

    @classmethod
    def random(cls) -> Self:
        return cls(secrets.token_bytes(KEY_BYTES))

    def key_file(self, service_uid: str, *, generation: int) -> bytes:
        """As agents read it: the newest key, then the one before."""
        both = (self._key(service_uid, each).hex() for each in (generation, generation - 1))
        return "".join(f"{key}\n" for key in both).encode()

    def key_id(self, service_uid: str, *, generation: int) -> str:
        """The name of the newest key, as agents log it."""
        return key_id(self._key(service_uid, generation)).hex()

    def report_token(self, service_uid: str, *, generation: int) -> str:
        """Of the key before the newest: agents hold it before and after they read a new file."""
        return report_token(self._key(service_uid, generation - 1))

    def _key(self, service_uid: str, generation: int) -> bytes:
        purpose = f"disagg key v1\0{service_uid}\0{generation}"
        return hmac.digest(self._root, purpose.encode(), "sha256")


class SecretKeeper(Protocol):
    """The part of the gateway that is needed here."""

    async def read(self, kind: Kind, *, namespace: str, name: str) -> Json: ...
    async def create(self, kind: Kind, body: Json) -> Json: ...


async def root_key(keeper: SecretKeeper, *, namespace: str, name: str) -> RootKey:
    """The one in the Secret; of two processes that make it at once, both get the first one's."""
    try:
        found = await keeper.read(Kind.SECRET, namespace=namespace, name=name)
    except ApiNotFoundError:
        try:
            made = _secret(secrets.token_bytes(KEY_BYTES), namespace=namespace, name=name)
            found = await keeper.create(Kind.SECRET, made)
        except AlreadyExistsError:
            found = await keeper.read(Kind.SECRET, namespace=namespace, name=name)
    return _parse(found, where=f"{namespace}/{name}")


def _secret(root: bytes, *, namespace: str, name: str) -> Json:
    return {
        "apiVersion": Kind.SECRET.api_version,
        "kind": "Secret",
        "metadata": {"namespace": namespace, "name": name},
        "type": "Opaque",
        "immutable": True,
        "data": {ENTRY: base64.b64encode(root).decode()},
    }


def _parse(secret: Json, *, where: str) -> RootKey:
    try:
        root = base64.b64decode((secret.get("data") or {}).get(ENTRY, ""), validate=True)
    except (binascii.Error, TypeError):
        root = b""
    if len(root) < KEY_BYTES:
        raise SettingsError(
            f"Secret {where} holds no root key of {KEY_BYTES} bytes in `{ENTRY}`: delete it, and"
            " the operator makes a new one, and new keys for every deployment"
        )
    return RootKey(root)
