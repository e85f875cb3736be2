"""Validation by proto, resource names and page tokens; which requests may be repeated."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinymlaas.gateway.v1 import builds_pb2
from tinymlaas.registry.v1 import devices_pb2, models_pb2, plugins_pb2
from tinymlaas_servicekit import (
    InvalidArgument,
    decode_page_token,
    encode_page_token,
    format_name,
    page_size,
    parse_name,
    resource_names,
    validate,
)
from tinymlaas_servicekit.channels import service_config


def _fields(message: object) -> set[str]:
    return {v.field for v in validate(message)}  # type: ignore[arg-type]


def test_a_complete_request_has_no_violations() -> None:
    assert validate(models_pb2.GetModelRequest(name="projects/p/models/m")) == []


def test_required_fields_must_be_set() -> None:
    assert _fields(models_pb2.GetModelRequest()) == {"name"}
    assert _fields(devices_pb2.UpsertDeviceRequest()) == {"device"}


def test_nested_and_repeated_messages_are_validated_with_their_path() -> None:
    request = devices_pb2.UpsertDeviceRequest()
    request.device.capabilities.target.cpu = "cortex-m4"
    request.device.capabilities.target.memory_regions.add(name="sram0")
    assert _fields(request) == {
        "device.capabilities.target.isa",
        "device.capabilities.target.memory_regions[0].kind",
        "device.capabilities.target.memory_regions[0].total_bytes",
    }


def test_references_match_the_pattern_of_their_resource() -> None:
    assert _fields(models_pb2.GetModelRequest(name="projects/p/modules/m")) == {"name"}
    assert _fields(models_pb2.GetModelRequest(name="projects/../models/m")) == {"name"}
    assert _fields(models_pb2.GetModelRequest(name="projects/p/models/m\n")) == {"name"}


def test_parents_match_the_parent_of_their_child_type() -> None:
    assert _fields(models_pb2.ListModelVersionsRequest(parent="projects/p")) == {"parent"}
    assert _fields(models_pb2.ListModelVersionsRequest(parent="projects/p/models/m")) == set()


def test_references_to_resources_of_other_files_are_checked() -> None:
    build = builds_pb2.Build(model_version="projects/p/models/m")
    build.target.cpu, build.target.isa = "c", "i"
    assert _fields(builds_pb2.CreateBuildRequest(parent="projects/p", build=build)) == {"build.model_version"}


def test_identifiers_match_their_own_pattern_and_output_only_fields_are_ignored() -> None:
    request = plugins_pb2.UpsertPluginRequest()
    request.plugin.name, request.plugin.address = "bad", "h:1"
    assert _fields(request) == {"plugin.name"}
    build = builds_pb2.Build(name="projects/p/builds/b", model_version="projects/p/models/m/versions/v")
    build.target.cpu, build.target.isa = "c", "i"
    build.candidates.add().log.append("x" * 5000)
    assert _fields(builds_pb2.CreateBuildRequest(parent="projects/p", build=build)) == set()


def test_strings_are_bounded_but_documents_may_be_longer() -> None:
    assert _fields(models_pb2.ListModelsRequest(parent="projects/p", tag="x" * 4097)) == {"tag"}
    request = plugins_pb2.UpsertPluginRequest()
    request.plugin.name, request.plugin.address = "plugins/io.example.a", "h:1"
    request.plugin.compiler_option_schema = "x" * 100_000
    assert _fields(request) == set()


@pytest.mark.parametrize(("size", "ok"), [(-1, False), (0, True), (1000, True), (1001, False)])
def test_page_sizes_have_a_range(size: int, ok: bool) -> None:
    assert (_fields(models_pb2.ListModelsRequest(parent="projects/p", page_size=size)) == set()) is ok


def test_chunks_of_an_upload_have_no_rules_to_pay_for() -> None:
    from tinymlaas_servicekit import validation

    validate(models_pb2.ImportModelRequest())
    assert not validation._rules_of(models_pb2.ModelChunk.DESCRIPTOR).active


@given(st.binary(max_size=300))
def test_validation_never_raises_on_any_message(data: bytes) -> None:
    request = devices_pb2.UpsertDeviceRequest()
    try:
        request.ParseFromString(data)
    except Exception:
        return
    validate(request)


@given(st.from_regex(resource_names.SEGMENT, fullmatch=True), st.from_regex(resource_names.SEGMENT, fullmatch=True))
def test_names_are_read_back_as_they_were_written(project: str, model: str) -> None:
    name = format_name(resource_names.MODEL, project=project, model=model)
    assert parse_name(resource_names.MODEL, name) == {"project": project, "model": model}


@pytest.mark.parametrize("segment", ["", ".", "..", "a/b", "a b", "ä", "-a", "a\n", "x" * 129])
def test_ids_that_could_be_mistaken_for_paths_are_refused(segment: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        format_name(resource_names.MODEL, project="p", model=segment)
    assert caught.value.reason == "NAME_INVALID"


@given(st.text(max_size=100))
def test_a_page_token_gives_its_cursor_back(cursor: str) -> None:
    request = models_pb2.ListModelsRequest(parent="projects/p", tag="t", page_size=3)
    request.page_token = encode_page_token(cursor, request)
    request.page_size = 7
    assert decode_page_token(request) == cursor


def test_a_page_token_of_another_filter_is_refused() -> None:
    first = models_pb2.ListModelsRequest(parent="projects/p")
    second = models_pb2.ListModelsRequest(parent="projects/q", page_token=encode_page_token("c", first))
    with pytest.raises(InvalidArgument) as caught:
        decode_page_token(second)
    assert caught.value.reason == "PAGE_TOKEN_INVALID"


@given(st.text(max_size=200))
def test_no_page_token_crashes_the_decoder(token: str) -> None:
    request = models_pb2.ListModelsRequest(parent="projects/p", page_token=token)
    # Only our own tokens are valid, and the empty one for the first page.
    with contextlib.suppress(InvalidArgument):
        assert decode_page_token(request) is None


def test_page_sizes_have_a_default_and_a_cap() -> None:
    assert (page_size(0), page_size(5), page_size(9999)) == (50, 5, 1000)


def test_what_creates_is_repeated_only_for_callers_that_always_set_a_request_id() -> None:
    def repeated(config: str) -> set[str]:
        (entry,) = json.loads(config)["methodConfig"]
        return {f"{name['service'].split('.', 1)[1]}/{name['method']}" for name in entry["name"]}

    creating = {"gateway.v1.Builds/CreateBuild", "gateway.v1.Deployments/CreateDeployment"}
    assert repeated(service_config(request_ids=True)) - repeated(service_config()) == creating
    assert "gateway.v1.Builds/GetBuild" in repeated(service_config())
