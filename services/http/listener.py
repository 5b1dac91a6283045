"""Where the service may listen, and whether it has the keys that it asks for."""

import socket

from rayward.cluster.config.serving import HttpSettings, ServingSettings
from rayward.cluster.errors import InputError
from rayward.services.http.keys import KeyRing, require_keys


def check_listener(settings: ServingSettings) -> None:
    """Refuse to serve others without keys, and an address that cannot be had.

    Raises:
        InputError: names http.host, http.port or keys.path.
    """
    http = settings.http
    if settings.keys.path is not None:
        KeyRing(settings.keys.path).require()
    require_keys(settings.keys, http.host)
    _require_free(http)


def _require_free(http: HttpSettings) -> None:
    family = socket.AF_INET6 if ":" in http.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((http.host, http.port))
        except OSError as error:
            raise InputError(
                "http.port", http.port, f"a free port of {http.host} ({error.strerror})"
            ) from error
