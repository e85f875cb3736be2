"""The sample plugin, whose tool dies of CheckModel as long as there is the file `TINYMLAAS_SAMPLE_BREAKS`."""

from __future__ import annotations

import os

import gateway_sample_plugin as sample

from tinymlaas.plugin.v1 import compiler_pb2
from tinymlaas_pluginkit import CompileJob, Reporter


def check(job: CompileJob, reporter: Reporter) -> compiler_pb2.CheckModelResult:
    """CheckModel."""
    if os.path.exists(os.environ["TINYMLAAS_SAMPLE_BREAKS"]):
        sample._count("broken check")
        os._exit(11)
    return _check(job, reporter)


_check = sample.check
sample.check = check

if __name__ == "__main__":
    sample.plugin().main()
