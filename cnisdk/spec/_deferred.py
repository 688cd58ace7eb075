"""The base class of objects that are read later."""

from __future__ import annotations

from collections.abc import Mapping

from .._light import Any


class Deferred:
    """Base of objects that keep the JSON object they are made of, and read it later; see :mod:`.lazy`."""

    document: Mapping[str, Any]
    """The object as it was parsed."""

    def __init__(self) -> None:
        self.__dict__["document"] = {}
