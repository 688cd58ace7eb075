"""Attach containers to networks, as a container runtime does (spec §1 and §3): the counterpart of Go's libcni."""

from .._lazy import exports
from .._light import TYPE_CHECKING

if TYPE_CHECKING:
    from .cache import DEFAULT_CACHE_DIR as DEFAULT_CACHE_DIR, Cache as Cache, CachedAttachment as CachedAttachment
    from .caches import (
        Memory as Memory,
        find_places as find_places,
        known_directories as known_directories,
        namespace_of as namespace_of,
        read_all as read_all,
    )
    from .hostview import Survey as Survey
    from .liveness import LeaseTrace as LeaseTrace, Liveness as Liveness, Traces as Traces, assess as assess
    from .load import (
        DEFAULT_CONF_DIR as DEFAULT_CONF_DIR,
        NetworkNotFoundError as NetworkNotFoundError,
        load_network as load_network,
        load_networks as load_networks,
        read_network as read_network,
    )
    from .network import Network as Network, NetworkPlugin as NetworkPlugin
    from .runner import GCReport as GCReport, Runtime as Runtime
    from .survey import find_other_uses as find_other_uses, survey_host as survey_host

__all__, __dir__, __getattr__ = exports(
    __name__,
    {
        ".cache": "DEFAULT_CACHE_DIR Cache CachedAttachment",
        ".caches": "Memory find_places known_directories namespace_of read_all",
        ".hostview": "Survey",
        ".liveness": "LeaseTrace Traces Liveness assess",
        ".load": "DEFAULT_CONF_DIR NetworkNotFoundError load_network load_networks read_network",
        ".network": "Network NetworkPlugin",
        ".runner": "GCReport Runtime",
        ".survey": "find_other_uses survey_host",
    },
)
