"""The optimizer as a plugin: role Optimizer of the plugin contract (spec/compiler-plugin.md)."""

from __future__ import annotations

import hashlib
from importlib.metadata import version

from tinymlaas.type.v1 import measurement_pb2, tensor_pb2
from tinymlaas_optimizer.optimize import optimize
from tinymlaas_optimizer.options import SCHEMA, Options
from tinymlaas_optimizer.samples import read_npz
from tinymlaas_pluginkit import Limits, OptimizeJob, OptimizeOutput, Optimizer, Plugin, Reporter

NAME = "io.tinymlaas.optimizer"


def run(job: OptimizeJob, report: Reporter) -> OptimizeOutput:
    """Optimize an ONNX file, with calibration samples when it is to be quantized."""
    arrays = None if job.calibration is None else read_npz(job.calibration)
    done = optimize(job.model, arrays, Options.parse(job.options), progress=report.progress)
    summary = done.report
    evaluation = summary.evaluation
    conditions = {} if evaluation is None else {"samples": str(evaluation.labelled)}
    before = [_figure(measurement_pb2.METRIC_WEIGHT_BYTES, "B", summary.parameter_bytes_before, job.model, {})]
    after = [_figure(measurement_pb2.METRIC_WEIGHT_BYTES, "B", summary.parameter_bytes_after, done.model, {})]
    if evaluation is not None:
        accuracy = measurement_pb2.METRIC_ACCURACY
        if evaluation.accuracy_before is not None and evaluation.accuracy_after is not None:
            before.append(_figure(accuracy, "1", evaluation.accuracy_before, job.model, conditions))
            after.append(_figure(accuracy, "1", evaluation.accuracy_after, done.model, conditions))
        for output in evaluation.outputs:
            name = {"output": output.name, "compared_with": "the float model"}
            after.append(_figure(measurement_pb2.METRIC_MAX_ABS_ERROR, "1", output.max_abs_error, done.model, name))
    return OptimizeOutput(done.model, tensor_pb2.MODEL_FORMAT_ONNX, before, after)


def plugin() -> Plugin:
    """The plugin with its identity, role and limits."""
    return Plugin(
        NAME,
        f"{version('tinymlaas-optimizer')}+onnxruntime{version('onnxruntime')}",
        display_name="Quantization and simplification by ONNX Runtime",
        licence="Apache-2.0",
        optimizer=Optimizer(optimize="tinymlaas_optimizer.plugin:run", option_schema=SCHEMA),
        limits=Limits(max_model_bytes=32 * 1024 * 1024, max_concurrency=2, max_seconds=600),
    )


def _figure(
    metric: measurement_pb2.Metric.ValueType, unit: str, value: float, model: bytes, conditions: dict[str, str]
) -> measurement_pb2.Measurement:
    # Parameters are counted in the file; what the model computes was observed while ONNX Runtime ran it.
    method = measurement_pb2.METHOD_LINKED if unit == "B" else measurement_pb2.METHOD_SIMULATED
    return measurement_pb2.Measurement(
        metric=metric,
        value=value,
        unit=unit,
        method=method,
        tool=NAME,
        tool_version=version("tinymlaas-optimizer"),
        subject_sha256s=[hashlib.sha256(model).hexdigest()],
        conditions=conditions,
    )
