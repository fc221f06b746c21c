"""Plain dicts become dataclasses strictly, or one line says why not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from sam3slim.strict import SpecError, spec_from_dict


@dataclass(frozen=True)
class Inner:
    size: int = 1


@dataclass(frozen=True)
class Outer:
    root: str
    rate: float = 0.1
    kind: Literal["cosine", "constant"] = "cosine"
    betas: tuple[float, float] = (0.9, 0.999)
    names: tuple[str, ...] = ()
    parts: list[str] = field(default_factory=list)
    limit: int | None = None
    files: str | dict[str, str] | None = None
    flag: bool = False
    inner: Inner = field(default_factory=Inner)
    maybe: Inner | None = None


def make(**values: Any) -> Outer:
    return spec_from_dict(Outer, {"root": "x"} | values, "data")


def test_spec_from_dict__every_kind_of_value() -> None:
    made = make(
        rate=1, kind="constant", betas=[0, 0.5], names=["a"], parts=["b"], limit=3, files={"val": "f"},
        flag=True, inner={"size": 2}, maybe={"size": 4},
    )  # fmt: skip
    assert made == Outer("x", 1.0, "constant", (0.0, 0.5), ("a",), ["b"], 3, {"val": "f"}, True, Inner(2), Inner(4))
    assert isinstance(made.rate, float)


def test_spec_from_dict__defaults_and_null() -> None:
    assert make(limit=None, files=None, maybe=None) == Outer("x")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kinde": "cosine"}, "unknown key data.kinde; did you mean data.kind?"),
        ({"zzz": 1}, "unknown key data.zzz; known keys: betas, files, flag, inner"),
        ({"inner": {"siez": 1}}, "unknown key data.inner.siez; did you mean data.inner.size?"),
        ({"maybe": {"siez": 1}}, "unknown key data.maybe.siez; did you mean data.maybe.size?"),
        ({"inner": "big"}, "data.inner must be a group of keys, got 'big'; to choose an option write data/inner=big"),
        ({"rate": "fast"}, "data.rate='fast' must be a finite number"),
        ({"rate": float("nan")}, "data.rate=nan must be a finite number"),
        ({"rate": True}, "data.rate=True must be a finite number"),
        ({"rate": None}, "data.rate=None must be a finite number"),
        ({"limit": 1.5}, "data.limit=1.5 must be an integer or null"),
        ({"limit": True}, "data.limit=True must be an integer or null"),
        ({"flag": 1}, "data.flag=1 must be true or false"),
        ({"root": 3}, "data.root=3 must be a text"),
        ({"kind": "cosin"}, "data.kind=cosin must be one of cosine, constant; did you mean cosine?"),
        ({"betas": 0.9}, "data.betas=0.9 must be a list"),
        ({"betas": [0.9]}, "data.betas=[0.9] must have 2 values"),
        ({"betas": [0.9, "x"]}, "data.betas[1]='x' must be a finite number"),
        ({"parts": ["a", 2]}, "data.parts[1]=2 must be a text"),
        ({"files": 5}, "data.files=5 must be a text or a group of keys or null"),
    ],
)  # fmt: skip
def test_spec_from_dict__refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        make(**values)
    assert str(caught.value).startswith(message)


def test_spec_from_dict__missing_key() -> None:
    with pytest.raises(SpecError, match=r"^data\.root is missing"):
        spec_from_dict(Outer, {}, "data")
