"""The embedded suite: services, plugins and virtual boards as local processes on the loopback interface."""

from tinymlaas_client.suite.manifest import ProcessSpec, SuiteManifest, load_manifest
from tinymlaas_client.suite.processes import ProcessRecord, Suite, SuiteError

__all__ = ["ProcessRecord", "ProcessSpec", "Suite", "SuiteError", "SuiteManifest", "load_manifest"]
