"""A configuration in a module that postpones the evaluation of annotations."""

from __future__ import annotations

from attrs import frozen

from cnisdk import NetConf


@frozen(kw_only=True)
class Part:
    text: str = ""


@frozen(kw_only=True)
class PostponedConf(NetConf):
    size: int = 0
    inner: Part | None = None
