"""Where things are when nobody says: the data folder, the personal configuration. Standard library only."""

import os
from collections.abc import Mapping
from pathlib import Path


def default_data(environment: Mapping[str, str] = os.environ) -> Path:
    """Where a controller lives when nobody says: /var/lib/banyan for root, else below the user's home."""
    if given := environment.get("BANYAN_DATA"):
        return Path(given)
    if os.geteuid() == 0:
        return Path("/var/lib/banyan")
    return Path(environment.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "banyan"


def personal_config(environment: Mapping[str, str] = os.environ) -> Path:
    """The kubeconfig that `banyan` uses before all others."""
    return Path(environment.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "banyan" / "config"


def cache(environment: Mapping[str, str] = os.environ) -> Path:
    """What may be lost: it can be had again."""
    return Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "banyan"
