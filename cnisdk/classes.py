"""Frozen attrs classes that are made without attrs.

Theory of operation. To import attrs takes as long as to serve a request, and to let it write and compile the methods of
all classes takes half of that again. :func:`frozen` gives a class methods from here, which are the same for all
classes. The class is an attrs class nevertheless: attrs itself makes its ``__attrs_attrs__``, of the same fields, when
something looks at it. So ``attrs.fields``, ``attrs.asdict``, cattrs, and subclasses with attrs' own decorator work.

What these functions do not know is left to attrs as a whole: any option but ``kw_only=True``, validators, converters,
decorators of a field (``@x.validator``, ``@x.default``), private names, methods that attrs would write but the class
has, bases that attrs made. The class is then attrs' own.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from attrs import evolve as evolve, field as field, frozen as frozen

FIELDS = "__cnisdk_fields__"
"""Attribute of the classes made here: a tuple of :class:`Field`, those of base classes first."""

REQUIRED: Any = type("Required", (), {"__repr__": lambda _: "REQUIRED"})()
"""Stands in place of the default of a field that has none."""

_KNOWN_OPTIONS = {"default", "factory", "metadata"}
_DECLARED = "cnisdk.field"

# A class that has one of these has wishes that attrs reads out of it.
_OWN_METHODS = {
    *("__init__", "__attrs_init__", "__attrs_pre_init__", "__eq__", "__ne__", "__hash__", "__repr__", "__match_args__"),
    *("__setattr__", "__delattr__", "__slots__", "__getstate__", "__setstate__", "__replace__"),
}


class Field:
    """A field of a frozen class.

    Attributes:
        name: Its name, and that of the argument.
        type: The annotation; a string if the module of the class postpones annotations.
        home: The class that declares it.
        default: The value of an absent argument; :data:`REQUIRED` if there is none.
        factory: Makes the value of an absent argument; None if `default` is the value.
        metadata: The mapping given to :func:`field`.
        options: The arguments of :func:`field`.
    """

    __slots__ = ("default", "factory", "home", "metadata", "name", "options", "type")

    def __init__(self, name: str, kind: Any, home: type, options: Mapping[str, Any]) -> None:
        self.name = name
        self.type = kind
        self.home = home
        self.options = options
        self.default = options.get("default", REQUIRED)
        self.factory: Callable[[], Any] | None = options.get("factory")
        self.metadata: Mapping[str, Any] = options.get("metadata") or {}

    @property
    def required(self) -> bool:
        """True if the argument must be given."""
        return self.default is REQUIRED and self.factory is None


class _Declared:
    """The value of a class's attribute between :func:`field` and :func:`frozen`."""

    __slots__ = ("decorated", "options")

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = options
        self.decorated: list[tuple[str, Callable[..., Any]]] = []
        """Names of the decorators below that the class uses, each with its method, in their order."""

    def validator(self, method: Any) -> Any:
        """Add a validator; see attrs."""
        self.decorated.append(("validator", method))
        return method

    def default(self, method: Any) -> Any:
        """Set the method that makes the default; see attrs."""
        self.decorated.append(("default", method))
        return method

    def make_attribute(self) -> Any:
        """Make what :func:`attrs.field` returns, decorated likewise."""
        import attrs

        made: Any = attrs.field(**self.options)
        for decorator, method in self.decorated:
            getattr(made, decorator)(method)
        return made


def field(**options: Any) -> Any:  # type: ignore[no-redef]
    """Declare a field, as :func:`attrs.field` does, for classes of either decorator."""
    declared = _Declared(options)
    is_wrong = {"default", "factory"} <= options.keys() or not callable(options.get("factory", dict))
    if "attr" not in sys.modules and not is_wrong:
        return declared  # for a decorator that is attrs' own, attrs would have been imported
    import attrs

    return attrs.field(**{**options, "metadata": {**(options.get("metadata") or {}), _DECLARED: declared}})


def frozen(cls: type | None = None, **options: Any) -> Any:  # type: ignore[no-redef]
    """Make a frozen class, as :func:`attrs.frozen` does."""
    if cls is None:
        return lambda cls: frozen(cls, **options)
    own = _declared_fields(cls) if options == {"kw_only": True} else None
    if own is None:
        return _made_by_attrs(cls, options)
    names = {each.name for each in own}
    inherited: dict[str, Field] = {}
    for base in reversed(cls.__mro__[1:-1]):
        for each in vars(base).get(FIELDS, ()):
            if each.home is base:
                inherited.pop(each.name, None)
                inherited[each.name] = each
    fields = (*(each for each in inherited.values() if each.name not in names), *own)
    for each in own:
        if each.name in vars(cls):
            delattr(cls, each.name)
    setattr(cls, FIELDS, fields)
    cls.__init__ = _make_init(cls, fields)  # type: ignore[misc]
    for name, method in _METHODS.items():
        setattr(cls, name, method)
    cls.__attrs_attrs__ = _Attributes(cls)  # type: ignore[attr-defined]
    cls.__signature__ = _Signature(cls, cls.__init__)  # type: ignore[attr-defined, misc]
    return cls


def _declared_fields(cls: type) -> list[Field] | None:
    """Return the fields that a class declares; None if attrs has to make the class."""
    own = vars(cls)
    if not _OWN_METHODS.isdisjoint(own) or issubclass(cls, BaseException) or hasattr(cls, "__attrs_pre_init__"):
        return None
    for base in cls.__mro__[1:-1]:
        if "__attrs_attrs__" in vars(base) and FIELDS not in vars(base):
            return None
    try:
        annotations = cls.__annotations__
    except NameError:  # from Python 3.14 on, one that names a later class
        return None
    found = []
    for name, kind in annotations.items():
        if _is_class_variable(kind):
            continue
        options = _options_of(own[name]) if name in own else {}
        if options is None or name.startswith("_") or _is_in_bases(cls, name):
            return None
        found.append(Field(name, kind, cls, options))
    declared = sum(isinstance(value, _Declared) or _is_of_attrs(value) for value in own.values())
    return found if declared == sum(name in own and _is_declared(own[name]) for name in annotations) else None


def _is_class_variable(annotation: Any) -> bool:
    if type(annotation) is not str:
        return type(annotation).__module__ == "typing" and repr(annotation).startswith("typing.ClassVar")
    return annotation.strip("'\"").startswith(
        ("ClassVar", "typing.ClassVar", "t.ClassVar", "typing_extensions.ClassVar")
    )


def _is_in_bases(cls: type, name: str) -> bool:
    """Return whether a base class has an attribute, such as a property, that an instance's own would not hide."""
    return any(name in vars(base) for base in cls.__mro__[1:-1])


def _is_of_attrs(value: object) -> bool:
    return type(value).__module__.startswith("attr.")


def _is_declared(value: object) -> bool:
    return isinstance(value, _Declared) or _is_of_attrs(value)


def _options_of(value: Any) -> Mapping[str, Any] | None:
    """Return the options of a field by the value its class gives it; None if attrs has to read them."""
    if _is_of_attrs(value):
        declared = getattr(value, "metadata", {}).get(_DECLARED)
        if declared is None or _is_decorated(value, declared):
            return None
        value = declared
    if not isinstance(value, _Declared):
        return {"default": value}
    if value.decorated:
        return None
    known = value.options.keys() <= _KNOWN_OPTIONS and not _is_of_attrs(value.options.get("default"))
    return value.options if known else None


def _is_decorated(attribute: Any, declared: _Declared) -> bool:
    """Return whether a class added a validator or a default to what :func:`attrs.field` made of a declared field."""
    import attrs

    # attrs refuses a second default, so only a field without one can have got it from a decorator.
    has_default = "default" in declared.options or declared.options.get("factory") is not None
    return attribute._validator is not None or (attribute._default is not attrs.NOTHING and not has_default)


def _made_by_attrs(cls: type, options: Mapping[str, Any]) -> type:
    import attrs

    for name, value in list(vars(cls).items()):
        if isinstance(value, _Declared):
            setattr(cls, name, value.make_attribute())
    return attrs.frozen(cls, **options)


def _make_init(cls: type, fields: tuple[Field, ...]) -> Callable[..., None]:
    defaults = {each.name: each.default for each in fields}
    required = [each.name for each in fields if each.required]
    factories = [(each.name, each.factory) for each in fields if each.factory is not None]
    count = len(defaults)
    post_init = hasattr(cls, "__attrs_post_init__")

    def __init__(self: Any, /, **given: Any) -> None:
        values = {**defaults, **given}
        if len(values) != count or (required and not given.keys() >= {*required}):
            raise TypeError(_complain(cls, given, defaults, required))
        for name, make in factories:
            if name not in given:
                values[name] = make()
        self.__dict__.update(values)
        if post_init:
            self.__attrs_post_init__()

    __init__.__qualname__ = f"{cls.__qualname__}.__init__"
    return __init__


def _complain(cls: type, given: Mapping[str, Any], known: Mapping[str, Any], required: list[str]) -> str:
    """Say what is wrong with the arguments, as Python says it of any function."""
    init = f"{cls.__qualname__}.__init__()"
    for name in given:
        if name not in known:
            return f"{init} got an unexpected keyword argument {name!r}"
    missing = [repr(name) for name in required if name not in given]
    *first, last = missing
    listed = f"{', '.join(first)}{',' if len(first) > 1 else ''} and {last}" if first else last
    return f"{init} missing {len(missing)} required keyword-only argument{'s' if first else ''}: {listed}"


def _eq(self: Any, other: object) -> Any:
    if other.__class__ is not self.__class__:
        return NotImplemented
    mine, theirs = self.__dict__, other.__dict__
    return all(mine[each.name] == theirs[each.name] for each in getattr(self, FIELDS))


def _hash(self: Any) -> int:
    values = self.__dict__
    return hash((self.__class__, *[values[each.name] for each in getattr(self, FIELDS)]))


def _repr(self: Any) -> str:
    values = self.__dict__
    fields = ", ".join([f"{each.name}={values[each.name]!r}" for each in getattr(self, FIELDS)])
    return f"{self.__class__.__qualname__.rpartition('>.')[2]}({fields})"


class _OfAttrs:
    """A method that attrs gives to every frozen class. attrs tells by it that a base class is frozen."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, instance: object, owner: type) -> Any:
        import attrs

        return getattr(attrs.frozen(type("Frozen", (), {})), self.name).__get__(instance, owner)


class _Attributes:
    """Description of the fields for attrs, which makes it on first use."""

    def __init__(self, cls: type) -> None:
        self.cls = cls

    def __get__(self, instance: object, owner: type) -> Any:
        import attrs

        made = attrs.fields(_twin(self.cls))
        self.cls.__attrs_attrs__ = made  # type: ignore[attr-defined]
        return made


class _Signature:
    """Signature of a class for :mod:`inspect`, as of an ``__init__`` with all arguments."""

    def __init__(self, cls: type, init: object) -> None:
        self.cls = cls
        self.init = init

    def __get__(self, instance: object, owner: Any) -> Any:
        import inspect

        if owner.__init__ is not self.init:
            raise AttributeError(f"{owner.__qualname__} has an __init__ of its own")
        return inspect.signature(_twin(self.cls))


def _twin(cls: type, made: dict[type, Any] | None = None) -> Any:
    """Make a class of the same fields and bases by attrs."""
    import attrs

    made = {} if made is None else made
    if cls not in made:
        own = {each.name: attrs.field(type=each.type, **each.options) for each in vars(cls)[FIELDS] if each.home is cls}
        bases = tuple(_twin(base, made) for base in cls.__bases__ if FIELDS in vars(base)) or (object,)
        made[cls] = attrs.make_class(
            cls.__name__, own, bases, frozen=True, kw_only=True, slots=False, collect_by_mro=True
        )
    return made[cls]


def evolve(instance: Any, /, **changes: Any) -> Any:  # type: ignore[no-redef]
    """Copy an object with some fields changed, as :func:`attrs.evolve` does."""
    cls = instance.__class__
    if FIELDS not in vars(cls):
        import attrs

        return attrs.evolve(instance, **changes)
    values = instance.__dict__
    return cls(**{each.name: values[each.name] for each in getattr(cls, FIELDS)} | changes)


_METHODS: dict[str, Any] = {
    "__eq__": _eq,
    "__hash__": _hash,
    "__repr__": _repr,
    "__setattr__": _OfAttrs("__setattr__"),
    "__delattr__": _OfAttrs("__delattr__"),
    "__replace__": evolve,
    "__match_args__": (),
}
