"""Plain dicts into dataclasses without leniency: the border where typing mistakes stop."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from difflib import get_close_matches
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from sam3slim.errors import UserError

SpecT = TypeVar("SpecT")

NAMES: dict[Any, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a finite number",
    str: "a text",
    dict: "a group of keys",
    Mapping: "a group of keys",
    types.NoneType: "null",
}


class SpecError(UserError):
    """A setting that cannot be; the message names the key and the fix."""


def spec_from_dict(cls: type[SpecT], values: Any, prefix: str) -> SpecT:
    """Build dataclass ``cls`` (nested ones too) from a plain dict, strictly.

    Lists become tuples where the field says tuple, and integers floats where it says float; nothing else
    is converted. ``prefix`` is how a user addresses the group (``model.vit``); empty at the top level.

    Raises:
        SpecError: an unknown key (the nearest known one is named), a missing one, or a value of the wrong type.
    """
    if not isinstance(values, dict):
        hint = f"; to choose an option write {prefix.replace('.', '/')}={values}" if isinstance(values, str) else ""
        needed = [f.name for f in fields(cls) if f.init and _required(f)]  # type: ignore[arg-type]
        if len(needed) == 1 and _fits(values, get_type_hints(cls)[needed[0]]):
            hint = f"; write {prefix}={{{needed[0]}: {values}}}"
        raise SpecError(f"{prefix} must be a group of keys, got {values!r}{hint}")
    members = {f.name: f for f in fields(cls) if f.init}  # type: ignore[arg-type]
    hints = get_type_hints(cls)
    arguments = {}
    for key, value in values.items():
        if key not in members:
            raise SpecError(unknown_key(prefix, str(key), list(members)))
        arguments[key] = _checked(value, hints[key], _join(prefix, key))
    missing = [_join(prefix, f.name) for f in members.values() if f.name not in arguments and _required(f)]
    if missing:
        raise SpecError(f"{missing[0]} is missing; add it")
    return cls(**arguments)


def unknown_key(prefix: str, key: str, known: Sequence[str]) -> str:
    """The message for ``prefix.key``, which does not exist, with the nearest of ``known`` or all of them."""
    near = get_close_matches(key, known, 1)
    hint = f"did you mean {_join(prefix, near[0])}?" if near else f"known keys: {', '.join(sorted(known))}"
    return f"unknown key {_join(prefix, key)}; {hint}"


def _join(prefix: str, key: Any) -> str:
    return f"{prefix}.{key}" if prefix else str(key)


def _required(item: Field[Any]) -> bool:
    return item.default is MISSING and item.default_factory is MISSING


def _checked(value: Any, hint: Any, name: str) -> Any:
    """``value`` as ``hint`` wants it, or a SpecError that says what was expected."""
    if is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, hint):
            return value  # from Python, checked already
        return spec_from_dict(hint, value, name)
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _checked_union(value, get_args(hint), name)
    if hint is tuple or origin is tuple:
        return _checked_tuple(value, get_args(hint), name)
    if hint is list or origin is list:
        return list(_checked_tuple(value, (*get_args(hint), ...), name))
    if origin is dict and is_dataclass(get_args(hint)[1]) and isinstance(value, dict):
        return {str(key): _checked(item, get_args(hint)[1], _join(name, key)) for key, item in value.items()}
    if _fits(value, hint):
        return float(value) if hint is float else value
    if origin is Literal:
        choices = [str(choice) for choice in get_args(hint)]
        near = get_close_matches(str(value), choices, 1)
        guess = f"; did you mean {near[0]}?" if near else ""
        raise SpecError(f"{name}={value} must be one of {', '.join(choices)}{guess}")
    raise SpecError(f"{name}={value!r} must be {describe(hint)}")


def _checked_union(value: Any, options: tuple[Any, ...], name: str) -> Any:
    if value is None and types.NoneType in options:
        return None
    rest = [option for option in options if option is not types.NoneType]
    for option in rest:
        try:
            return _checked(value, option, name)
        except SpecError:
            if len(rest) == 1 and (is_dataclass(option) or get_origin(option) is not None):
                raise  # the inner message is the sharper one
    wanted = " or ".join(describe(option) for option in options)
    raise SpecError(f"{name}={value!r} must be {wanted}")


def _checked_tuple(value: Any, elements: tuple[Any, ...], name: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise SpecError(f"{name}={value!r} must be a list, such as [1, 2]")
    if not elements or elements[0] is ...:
        return tuple(value)
    if elements[-1] is ...:
        elements = (elements[0],) * len(value)
    if len(value) != len(elements):
        raise SpecError(f"{name}={list(value)!r} must have {len(elements)} values")
    return tuple(_checked(v, e, f"{name}[{i}]") for i, (v, e) in enumerate(zip(value, elements, strict=True)))


def _fits(value: Any, hint: Any) -> bool:
    kind = get_origin(hint) or hint
    if kind is Literal:
        return value in get_args(hint)
    if kind is Any:
        return True
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def describe(hint: Any) -> str:
    """A type as a user would say it: ``an integer``, ``a list``."""
    kind = get_origin(hint) or hint
    if kind is Literal:
        return " or ".join(str(choice) for choice in get_args(hint))
    return "a list" if kind in (tuple, list) else NAMES.get(kind, str(hint))
