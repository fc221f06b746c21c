"""Options of every method are checked as all other settings are: one line that names the key."""

from __future__ import annotations

import dataclasses
import re

import pytest

from sam3slim.compression import Int8Rules, method_from_name, method_names
from sam3slim.errors import UserError

WITH_RULES = ("int8_weight", "int8_dynamic", "fp8_dynamic", "int8_onnx", "int8_onnx_static", "int4_weight", "int4_onnx")


@pytest.mark.parametrize("name", method_names())
def test_method_from_name__every_option_refuses_what_it_is_not(name: str) -> None:
    options = [item.name for item in dataclasses.fields(method_from_name(name))]
    for option in options:
        for value in (None, -7, "x"):
            with pytest.raises(UserError) as refused:
                method_from_name(name, **{option: value})
            message = str(refused.value)
            assert re.search(rf"\bcompress\.{name}\.{option}\b", message), message
            assert re.search(r" must be |^unknown option ", message), message
            assert "\n" not in message
    with pytest.raises(UserError, match=rf"^unknown key compress\.{name}\.foreign"):
        method_from_name(name, foreign=1)


@pytest.mark.parametrize("name", WITH_RULES)
def test_method_from_name__rules_are_plain_values_or_an_object(name: str) -> None:
    plain = method_from_name(name, rules={"parts": ["vision"], "also": []})
    assert plain == method_from_name(name, rules=Int8Rules(parts=("vision",), also=()))
    with pytest.raises(UserError, match=rf"unknown key compress\.{name}\.rules\.part; did you mean .*parts"):
        method_from_name(name, rules={"part": ["vision"]})
    with pytest.raises(UserError, match=r"unknown part 'vison'.*did you mean vision"):
        method_from_name(name, rules={"parts": ["vison"]})
    with pytest.raises(UserError, match=rf"compress\.{name}\.rules\.min_columns='many' must be an integer"):
        method_from_name(name, rules={"min_columns": "many"})


def test_method_from_name__unknown_method() -> None:
    with pytest.raises(UserError, match="compress=int8_wieght is not a method; did you mean int8_weight"):
        method_from_name("int8_wieght")
