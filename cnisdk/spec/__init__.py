"""Typed objects and versions of the CNI specification. Pure: no I/O, no operating system."""

from .._lazy import exports
from .._light import TYPE_CHECKING

if TYPE_CHECKING:
    from .addresses import IPAddress as IPAddress, IPInterface as IPInterface, IPNetwork as IPNetwork
    from .codec import (
        dumps as dumps,
        dumps_compact as dumps_compact,
        loads as loads,
        make_converter as make_converter,
        structure as structure,
        unstructure as unstructure,
    )
    from .config import (
        Bandwidth as Bandwidth,
        IPAMConf as IPAMConf,
        IPRange as IPRange,
        NetConf as NetConf,
        NetConfList as NetConfList,
        PortMapping as PortMapping,
        RuntimeConfig as RuntimeConfig,
        RuntimeDNS as RuntimeDNS,
        parse_args as parse_args,
    )
    from .convert import (
        AnyResult as AnyResult,
        Conversion as Conversion,
        Lost as Lost,
        convert_result as convert_result,
        parse_result as parse_result,
        print_result as print_result,
        upgrade as upgrade,
    )
    from .fields import json_field as json_field
    from .lazy import LazyObject as LazyObject, lazy_field as lazy_field
    from .names import Attachment as Attachment
    from .older_results import Result020 as Result020, Result040 as Result040, Result100 as Result100
    from .result import DNS as DNS, Interface as Interface, IPConfig as IPConfig, Result as Result, Route as Route
    from .versions import SpecVersion as SpecVersion, Verb as Verb

__all__, __dir__, __getattr__ = exports(
    __name__,
    {
        ".addresses": "IPAddress IPInterface IPNetwork",
        ".codec": "dumps dumps_compact loads make_converter structure unstructure",
        ".config": "Bandwidth IPAMConf IPRange NetConf NetConfList PortMapping RuntimeConfig RuntimeDNS parse_args",
        ".convert": "AnyResult Conversion Lost convert_result parse_result print_result upgrade",
        ".lazy": "LazyObject lazy_field",
        ".fields": "json_field",
        ".names": "Attachment",
        ".older_results": "Result020 Result040 Result100",
        ".result": "DNS Interface IPConfig Result Route",
        ".versions": "SpecVersion Verb",
    },
    "addresses codec config convert lazy names older_results result versions",
)
