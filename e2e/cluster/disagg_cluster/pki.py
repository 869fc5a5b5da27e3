"""One certificate authority per cluster, and a client or serving certificate for each component."""

import datetime as dt
import ipaddress
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from disagg_cluster.addresses import (
    API_SERVICE_ADDRESS,
    CLUSTER_DOMAIN,
    LOOPBACK,
    NODE_ADDRESS,
    NODE_NAME,
)
from disagg_cluster.errors import MachineError

FORMAT = 2  # raised when what is in a certificate changes
LIFETIME = dt.timedelta(days=365)
BACKDATED = dt.timedelta(hours=1)  # clocks in virtual machines step back


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A certificate: client by its name and groups, server by its names."""

    file: str
    name: str
    groups: tuple[str, ...] = ()
    served: tuple[str, ...] = ()


IDENTITIES = (
    Identity(file="admin", name="disagg-admin", groups=("system:masters",)),
    Identity(
        file="apiserver",
        name="kube-apiserver",
        served=(
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            f"kubernetes.default.svc.{CLUSTER_DOMAIN}",
            "localhost",
            LOOPBACK,
            NODE_ADDRESS,
            API_SERVICE_ADDRESS,
        ),
    ),
    Identity(file="apiserver-kubelet", name="disagg-apiserver", groups=("system:masters",)),
    Identity(file="controller-manager", name="system:kube-controller-manager"),
    Identity(file="scheduler", name="system:kube-scheduler"),
    Identity(file="kube-proxy", name="system:kube-proxy"),
    Identity(file="coredns", name="system:coredns"),
    Identity(file="kwok", name="disagg-kwok", groups=("system:masters",)),
    Identity(file="kubelet", name=f"system:node:{NODE_NAME}", groups=("system:nodes",)),
    Identity(file="kubelet-serving", name=NODE_NAME, served=(NODE_NAME, NODE_ADDRESS, LOOPBACK)),
)


def _write_private(path: Path, body: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(body)


def _key_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _subject(name: str, groups: Iterable[str] = ()) -> x509.Name:
    organizations = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
    return x509.Name([*organizations, x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _alternative_name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    authority_key: ec.EllipticCurvePublicKey,
    now: dt.datetime,
) -> x509.CertificateBuilder:
    """With all that Python 3.13 asks of a chain (VERIFY_X509_STRICT): key identifiers and usages."""
    is_authority = public_key == authority_key
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + LIFETIME)
        .add_extension(
            x509.BasicConstraints(ca=is_authority, path_length=0 if is_authority else None),
            critical=True,
        )
        .add_extension(_usage(authority=is_authority), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key), critical=False
        )
    )


@dataclass(frozen=True, slots=True)
class Authority:
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)


def new_authority(now: dt.datetime) -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _subject("disagg-cluster")
    public = key.public_key()
    certificate = _builder(name, name, public, public, now).sign(key, hashes.SHA256())
    return Authority(key, certificate)


def issue(authority: Authority, identity: Identity, now: dt.datetime) -> tuple[bytes, bytes]:
    """PEM of the key and of its certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    usage = ExtendedKeyUsageOID.SERVER_AUTH if identity.served else ExtendedKeyUsageOID.CLIENT_AUTH
    builder = _builder(
        _subject(identity.name, identity.groups),
        authority.certificate.subject,
        key.public_key(),
        authority.key.public_key(),
        now,
    ).add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    if identity.served:
        names = x509.SubjectAlternativeName([_alternative_name(name) for name in identity.served])
        builder = builder.add_extension(names, critical=False)
    certificate = builder.sign(authority.key, hashes.SHA256())
    return _key_bytes(key), certificate.public_bytes(serialization.Encoding.PEM)


def ensure_certificates(folder: Path) -> bool:
    """True when they were made. A running cluster keeps its own: tokens in pods hang on them."""
    inputs = json.dumps([FORMAT, *(asdict(identity) for identity in IDENTITIES)])
    marker = folder / "inputs.json"
    if marker.exists():
        if marker.read_text(encoding="utf-8") == inputs:
            return False
        raise MachineError(
            f"the cluster's certificates in {folder} are of another version of this program:"
            " run `disagg-cluster down` and then `up`"
        )
    now = dt.datetime.now(dt.UTC)
    authority = new_authority(now)
    _write_private(folder / "ca.key", _key_bytes(authority.key))
    (folder / "ca.crt").write_bytes(authority.pem)
    for identity in IDENTITIES:
        key, certificate = issue(authority, identity, now)
        _write_private(folder / f"{identity.file}.key", key)
        (folder / f"{identity.file}.crt").write_bytes(certificate)
    _write_service_account_keys(folder)
    marker.write_text(inputs, encoding="utf-8")
    return True


def _write_service_account_keys(folder: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    _write_private(folder / "service-account.key", _key_bytes(key))
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    (folder / "service-account.pub").write_bytes(public)
