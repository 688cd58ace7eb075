"""Attach containers to networks, as a container runtime does (spec §1 and §3): what libcni is to Go programs."""

from typing import TYPE_CHECKING

from .._lazy import exports

if TYPE_CHECKING:
    from .cache import DEFAULT_CACHE_DIR as DEFAULT_CACHE_DIR, Cache as Cache, CachedAttachment as CachedAttachment
    from .load import (
        DEFAULT_CONF_DIR as DEFAULT_CONF_DIR,
        NetworkNotFoundError as NetworkNotFoundError,
        load_network as load_network,
        load_networks as load_networks,
        read_network as read_network,
    )
    from .network import Network as Network, NetworkPlugin as NetworkPlugin
    from .runner import GCReport as GCReport, Runtime as Runtime

__all__, __dir__, __getattr__ = exports(
    __name__,
    {
        ".cache": "DEFAULT_CACHE_DIR Cache CachedAttachment",
        ".load": "DEFAULT_CONF_DIR NetworkNotFoundError load_network load_networks read_network",
        ".network": "Network NetworkPlugin",
        ".runner": "GCReport Runtime",
    },
)
