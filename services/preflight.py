"""What can be known to be wrong before anything is started."""

import ipaddress
import socket

from actors.chat import require_template
from actors.lora import is_adapter
from actors.model_kinds import (
    CAUSAL_LM,
    CLASSIFIER,
    load_config,
    require_causal_lm,
    require_classifier,
)
from actors.models import load_tokenizer
from actors.reward_model import load_reward_tokenizer
from cluster.config.serving import HttpSettings, ServingSettings
from cluster.errors import InputError
from cluster.types import AXES


def check(settings: ServingSettings) -> None:
    """Look at the address, the keys and the models.

    Raises:
        InputError: names the setting.
    """
    check_address(settings)
    if settings.keys.path is not None:
        from services.keys import KeyRing

        KeyRing(settings.keys.path).require()
    if settings.policy is not None:
        path = settings.policy.path
        if is_adapter(path):
            raise InputError(
                "policy.path", path, "a whole model; it is a PEFT adapter (save_as: merged)"
            )
        require_causal_lm(load_config(path, "policy.path", CAUSAL_LM), path, "policy.path")
        tokenizer = load_tokenizer(path, "policy.path")
        require_template(tokenizer, "policy.path", path)
    if settings.reward is not None:
        for axis in AXES:
            model = getattr(settings.reward, axis)
            if model is not None:
                field = f"reward.{axis}.path"
                config = load_config(model.path, field, CLASSIFIER)
                require_classifier(config, model.path, field)
                load_reward_tokenizer(axis, model.path, model)


def check_address(settings: ServingSettings) -> None:
    """Refuse to serve others without keys, and an address that cannot be had.

    Raises:
        InputError: names http.host or http.port.
    """
    http = settings.http
    if settings.keys.path is None and not is_loopback(http.host):
        raise InputError(
            "http.host",
            http.host,
            "127.0.0.1, or keys (`rayward keys create`, keys.path), because others could come in",
        )
    _require_free(http)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


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
