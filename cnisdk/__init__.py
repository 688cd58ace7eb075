"""cnisdk: write, run and test plugins of the Container Network Interface (CNI)."""

from ._lazy import exports

__version__ = "0.1.0"

TYPE_CHECKING = False  # type checkers take it as true; importing typing would take longer than VERSION
if TYPE_CHECKING:
    from attrs import evolve as evolve, field as field, frozen as frozen

    from .errors import (
        CNIError as CNIError,
        DecodingError as DecodingError,
        IncompatibleVersionError as IncompatibleVersionError,
        InternalError as InternalError,
        InvalidConfigError as InvalidConfigError,
        InvalidEnvironmentError as InvalidEnvironmentError,
        InvalidNetNSError as InvalidNetNSError,
        IOFailureError as IOFailureError,
        LimitedConnectivityError as LimitedConnectivityError,
        PluginNotAvailableError as PluginNotAvailableError,
        TryAgainLaterError as TryAgainLaterError,
        UnknownContainerError as UnknownContainerError,
        UnsupportedFieldError as UnsupportedFieldError,
        run_all as run_all,
    )
    from .plugin.base import Plugin as Plugin
    from .plugin.main import PluginMain as PluginMain
    from .plugin.request import (
        AddRequest as AddRequest,
        CheckRequest as CheckRequest,
        DelRequest as DelRequest,
        GCRequest as GCRequest,
        StatusRequest as StatusRequest,
    )
    from .spec.config import IPAMConf as IPAMConf, NetConf as NetConf
    from .spec.fields import json_field as json_field
    from .spec.names import Attachment as Attachment
    from .spec.result import DNS as DNS, Interface as Interface, IPConfig as IPConfig, Result as Result, Route as Route

__all__, __dir__, __getattr__ = exports(
    __name__,
    {
        ".classes": "evolve field frozen",
        ".errors": "CNIError DecodingError IncompatibleVersionError InternalError InvalidConfigError "
        "InvalidEnvironmentError InvalidNetNSError IOFailureError LimitedConnectivityError PluginNotAvailableError "
        "TryAgainLaterError UnknownContainerError UnsupportedFieldError run_all",
        ".plugin.base": "Plugin",
        ".plugin.main": "PluginMain",
        ".plugin.request": "AddRequest CheckRequest DelRequest GCRequest StatusRequest",
        ".spec.fields": "json_field",
        ".spec.config": "IPAMConf NetConf",
        ".spec.names": "Attachment",
        ".spec.result": "DNS Interface IPConfig Result Route",
    },
    "classes conformance dhcp errors invoke ipam linux plugin runtime spec testing",
)
