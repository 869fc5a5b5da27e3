"""Who we are to the API server: the pod's service account or a kubeconfig, for our calls and kopf's."""

import os

import kopf
from kubernetes.aio import config as client_config
from kubernetes.aio.client.configuration import Configuration

from disagg_operator.errors import SettingsError


async def client_configuration() -> Configuration:
    """The pod's service account, or else the kubeconfig that `KUBECONFIG` or the default names."""
    configuration = Configuration()
    try:
        client_config.load_incluster_config(client_configuration=configuration)
    except client_config.ConfigException:
        await _load_kubeconfig(configuration)
    return configuration


async def _load_kubeconfig(configuration: Configuration) -> None:
    path = os.environ.get("KUBECONFIG")
    try:
        await client_config.load_kube_config(config_file=path, client_configuration=configuration)
    except client_config.ConfigException as error:
        raise SettingsError(
            f"no API server: this is no pod with a service account, and KUBECONFIG"
            f" ({path or 'not set'}) gives none: {error}"
        ) from error


async def kopf_credentials(configuration: Configuration) -> kopf.ConnectionInfo:
    """The same server and identity for kopf's watches, read anew at each login (tokens rotate)."""
    header = await configuration.get_api_key_with_prefix("BearerToken") or ""
    scheme, _, token = header.rpartition(" ")
    return kopf.ConnectionInfo(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        insecure=not configuration.verify_ssl,
        scheme=scheme or None,
        token=token or None,
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
    )
