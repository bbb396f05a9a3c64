"""Whom a kubeconfig names, as whom, and how to get there.

The official client does what is full of corners: kubeconfig files, exec plugins, OIDC, tokens and certificates that rotate on disk,
proxies, and urllib3's transport under it. Nothing else imports `kubernetes`. A kubeconfig is a person's: it is read and never written, so a
token that was refreshed lives in memory.
"""

import ssl

import oauthlib.oauth2
import urllib3
import yaml
from kubernetes import config as kube_config
from kubernetes.client import Configuration, OpenApiException
from kubernetes.client.rest import RESTClientObject
from msgspec import Struct

from cluster_shim.contract import ShimError
from cluster_shim.kubernetes.dial import SOCKET_OPTIONS, Route

CONNECTIONS = 32  # kept: the executor's and one per watch


class Access(Struct, frozen=True):
    """Where the kubeconfig is and which of its contexts counts. Both empty in a pod: its service account."""

    kubeconfig: str = ""
    context: str = ""


class Way(Struct, frozen=True):
    """Whom to ask, and as whom. Read, checked and put in place as a whole: a thread sees one or the other, never some of both."""

    configuration: Configuration
    pool: urllib3.PoolManager
    route: Route  # the same for raw connections
    inside: bool

    @property
    def url(self) -> str:
        return str(self.configuration.host)


def read(access: Access) -> Way:
    """In any thread: the configuration as it is on the disk now. ShimError names the file or the context, and the remedy."""
    configuration = Configuration()
    inside = False
    try:
        if access.kubeconfig or access.context:
            kube_config.load_kube_config(access.kubeconfig or None, access.context or None, configuration, persist_config=False)
        else:
            try:
                kube_config.load_incluster_config(configuration)
                inside = True
            except kube_config.ConfigException:
                kube_config.load_kube_config(client_configuration=configuration, persist_config=False)
    except kube_config.ConfigException as error:
        place = access.kubeconfig or "no --kubeconfig, $KUBECONFIG, ~/.kube/config or service account"
        raise ShimError(f"{place}: {error}; name a kubeconfig that kubectl accepts with --kubeconfig and --context") from None
    except (oauthlib.oauth2.OAuth2Error, OpenApiException, urllib3.exceptions.HTTPError) as error:
        said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ShimError(
            f"{access.kubeconfig or 'the kubeconfig'}: its OIDC issuer gives no new token: {said}; "
            "log in again, or use an exec plugin where refresh tokens are for one use (this file is only read)"
        ) from None
    except (OSError, ValueError, TypeError, AttributeError, KeyError, yaml.YAMLError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ShimError(f"{access.kubeconfig or 'the kubeconfig'} cannot be read as a kubeconfig: {said}") from None
    configuration.retries = False
    configuration.connection_pool_maxsize = CONNECTIONS
    configuration.socket_options = list(SOCKET_OPTIONS)
    context = _context(configuration)
    pool = RESTClientObject(configuration).pool_manager
    proxied = type(pool) is not urllib3.PoolManager  # the official client decided so, NO_PROXY considered
    url = str(configuration.host)
    route = Route(
        url,
        context if url.startswith("https:") else None,
        configuration.tls_server_name or "",
        str(configuration.proxy) if proxied else "",
        dict(configuration.proxy_headers or {}) if proxied else {},
    )
    return Way(configuration, pool, route, inside)


def _context(configuration: Configuration) -> ssl.SSLContext:
    """The same trust and certificate as the official client's connections have."""
    try:
        context = ssl.create_default_context(cafile=configuration.ssl_ca_cert or None)
        if not configuration.verify_ssl:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if configuration.cert_file:
            context.load_cert_chain(configuration.cert_file, configuration.key_file)
    except (OSError, ssl.SSLError) as error:
        raise ShimError(f"the kubeconfig's certificates cannot be used: {error}") from None
    context.set_alpn_protocols(["http/1.1"])
    return context
