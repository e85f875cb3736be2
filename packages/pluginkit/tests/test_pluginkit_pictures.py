"""Pictures of plugins: only a self-contained SVG is kept (CP-OPTIMIZE-002)."""

from __future__ import annotations

import hashlib

import pytest

from tinymlaas.plugin.v1 import optimizer_pb2
from tinymlaas.type.v1 import tensor_pb2
from tinymlaas_pluginkit._checks import MAX_REPORT_BYTES, check_optimized, svg_fault
from tinymlaas_pluginkit.errors import PluginProtocol

HEAD = b'<svg xmlns="http://www.w3.org/2000/svg">'


def svg(inside: bytes) -> bytes:
    return HEAD + inside + b"</svg>"


def test_a_plain_picture_is_fine() -> None:
    inside = b'<style>.a{fill:#123}</style><g><rect class="a" width="1"/><text x="1">a &lt; b</text></g>'
    assert svg_fault(svg(inside)) == ""


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"<svg>",
        b"<svg></svg>",
        b'<html xmlns="http://www.w3.org/1999/xhtml"></html>',
        b'<!DOCTYPE svg [<!ENTITY a "b">]>' + svg(b"<text>&a;</text>"),
        b'<?xml-stylesheet href="https://example.com/a.css"?>' + svg(b""),
        svg(b"<script>alert(1)</script>"),
        svg(b"<foreignObject/>"),
        svg(b'<image href="https://example.com/a.png"/>'),
        svg(b'<rect onload="alert(1)"/>'),
        svg(b'<rect xmlns:xlink="http://www.w3.org/1999/xlink" xlink:href="#a"/>'),
        svg(b'<rect fill="url(https://example.com/a)"/>'),
        svg(b'<rect style="background:IMAGE(a)"/>'),
        svg(b"<style>@import 'https://example.com/a.css';</style>"),
        svg(b"<style>a{b:u\\72l(c)}</style>"),
        svg(b" " * MAX_REPORT_BYTES),
    ],
)
def test_what_could_run_or_reach_out_is_no_picture(data: bytes) -> None:
    assert svg_fault(data)


@pytest.mark.parametrize(("name", "data"), [("recipe", b"[]"), ("report", b"{"), ("report", b"[" * 100_000)])
def test_recipe_and_report_are_json_objects(name: str, data: bytes) -> None:
    result = optimizer_pb2.OptimizeResult(
        model_format=tensor_pb2.MODEL_FORMAT_ONNX, model_sha256=hashlib.sha256(b"m").digest(), model_bytes=1
    )
    check_optimized(result, {"model": b"m", "recipe": b"{}", "report": b"{}"})
    with pytest.raises(PluginProtocol, match="CP-OPTIMIZE-002"):
        check_optimized(result, {"model": b"m", name: data})
