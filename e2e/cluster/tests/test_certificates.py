"""Certificates that strict clients accept, made once for a cluster's life."""

import datetime as dt
import subprocess

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtensionOID

from disagg_cluster import pki
from disagg_cluster.errors import MachineError


@pytest.fixture
def folder(tmp_path):
    assert pki.ensure_certificates(tmp_path)
    return tmp_path


def _certificate(folder, name):
    return x509.load_pem_x509_certificate((folder / f"{name}.crt").read_bytes())


@pytest.mark.parametrize(
    "name", ["198.18.0.1", "198.19.0.1", "127.0.0.1", "kubernetes.default.svc", "localhost"]
)
def test_the_api_server_is_known_by_every_name_it_is_asked_by(folder, name):
    names = _certificate(folder, "apiserver").extensions.get_extension_for_oid(
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME
    )
    assert name in {str(one.value) for one in names.value}


def test_the_kubelet_is_a_node_and_serves_on_the_node_address(folder):
    assert "O=system:nodes" in _certificate(folder, "kubelet").subject.rfc4514_string()
    names = _certificate(folder, "kubelet-serving").extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert "198.18.0.1" in {str(one.value) for one in names.value}


def _is_trusted(authority, certificate, *, purpose):
    return (
        subprocess.run(
            [
                "openssl",
                "verify",
                "-x509_strict",
                "-purpose",
                purpose,
                "-CAfile",
                authority,
                certificate,
            ],
            capture_output=True,
            check=False,
        ).returncode
        == 0
    )


@pytest.mark.parametrize("identity", pki.IDENTITIES, ids=lambda identity: identity.file)
def test_every_certificate_holds_under_strict_checking(folder, identity):
    purpose = "sslserver" if identity.served else "sslclient"
    certificate = folder / f"{identity.file}.crt"
    assert _is_trusted(folder / "ca.crt", certificate, purpose=purpose)


def test_another_cluster_authority_is_not_trusted(folder, tmp_path_factory):
    stranger = tmp_path_factory.mktemp("other") / "ca.crt"
    stranger.write_bytes(pki.new_authority(dt.datetime.now(dt.UTC)).pem)
    assert not _is_trusted(stranger, folder / "admin.crt", purpose="sslclient")


def test_keys_are_for_their_owner_only(folder):
    assert {path.stat().st_mode & 0o777 for path in folder.glob("*.key")} == {0o600}


def test_a_second_run_keeps_them(folder):
    before = (folder / "ca.crt").read_bytes()
    assert not pki.ensure_certificates(folder)
    assert (folder / "ca.crt").read_bytes() == before


def test_certificates_of_another_version_are_refused_with_what_to_do(folder):
    (folder / "inputs.json").write_text("[1]")
    with pytest.raises(MachineError, match=r"disagg-cluster down"):
        pki.ensure_certificates(folder)
