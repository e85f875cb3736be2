"""The public face of the packages whose modules load when they are first asked for."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest


@pytest.mark.parametrize("package", ["tinymlaas_servicekit", "tinymlaas_pluginkit"])
def test_every_public_name_is_where_the_package_says(package: str) -> None:
    module = importlib.import_module(package)
    assert sorted(module._PLACES) == sorted(module.__all__)
    assert set(module.__all__) <= set(dir(module))
    for name in module.__all__:
        assert getattr(module, name) is getattr(importlib.import_module(f"{package}.{module._PLACES[name]}"), name)
    with pytest.raises(AttributeError):
        module.no_such_name  # noqa: B018


def test_a_worker_loads_neither_server_nor_settings() -> None:
    program = (
        "import tinymlaas_pluginkit.worker, sys; from tinymlaas_pluginkit import CompileJob, ModelInvalid, Plugin; "
    )
    program += "print([n for n in ('pydantic', 'opentelemetry', 'structlog', 'jsonschema') if n in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "[]"
