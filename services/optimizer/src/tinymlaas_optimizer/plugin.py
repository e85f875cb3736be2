"""The optimizer as a plugin: role Optimizer of the plugin contract (spec/compiler-plugin.md)."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from tinymlaas.type.v1 import measurement_pb2, tensor_pb2
from tinymlaas_modelkit.check import check_model_here
from tinymlaas_optimizer.optimize import optimize
from tinymlaas_optimizer.options import SCHEMA, Options
from tinymlaas_optimizer.report import Size
from tinymlaas_optimizer.samples import read_npz
from tinymlaas_pluginkit import Limits, OptimizeJob, OptimizeOutput, Optimizer, Plugin, Reporter

NAME = "io.tinymlaas.optimizer"


def run(job: OptimizeJob, report: Reporter) -> OptimizeOutput:
    """Optimize an ONNX file, with calibration samples when a recipe needs them."""
    arrays = None if job.calibration is None else read_npz(job.calibration)
    # The worker may die, so the file is checked right here.
    done = optimize(job.model, arrays, Options.parse(job.options), progress=report.progress, check=check_model_here)
    summary, taken = done.report, done.report.taken
    assert taken.size is not None
    before, after = _sizes(summary.before), _sizes(taken.size)
    evaluation = taken.evaluation
    if evaluation is not None:
        accuracy = measurement_pb2.METRIC_ACCURACY
        conditions = {"samples": str(evaluation.labelled)}
        if evaluation.accuracy_before is not None and evaluation.accuracy_after is not None:
            before.append(_figure(accuracy, "1", evaluation.accuracy_before, summary.before, conditions))
            if taken.held_out:
                conditions = {**conditions, "held_out": "true"}
            after.append(_figure(accuracy, "1", evaluation.accuracy_after, taken.size, conditions))
        for output in evaluation.outputs:
            name = {"output": output.name, "compared_with": "the float model"}
            after.append(_figure(measurement_pb2.METRIC_MAX_ABS_ERROR, "1", output.max_abs_error, taken.size, name))
    return OptimizeOutput(
        done.model,
        tensor_pb2.MODEL_FORMAT_ONNX,
        before,
        after,
        recipe=done.recipe,
        report=summary.to_json(),
        picture=done.picture,
    )


def plugin() -> Plugin:
    """The plugin with its identity, role and limits."""
    return Plugin(
        NAME,
        f"{version('tinymlaas-optimizer')}+onnxruntime{version('onnxruntime')}",
        display_name="Folding, pruning and quantization by recipes",
        licence="Apache-2.0",
        optimizer=Optimizer(optimize="tinymlaas_optimizer.plugin:run", option_schema=SCHEMA),
        limits=Limits(max_model_bytes=32 * 1024 * 1024, max_concurrency=2, max_seconds=600),
    )


def _sizes(size: Size) -> list[measurement_pb2.Measurement]:
    return [_figure(measurement_pb2.METRIC_WEIGHT_BYTES, "B", size.parameter_bytes, size, {})]


def _figure(
    metric: measurement_pb2.Metric.ValueType, unit: str, value: float, size: Size, conditions: dict[str, Any]
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
        subject_sha256s=[size.sha256],
        conditions=conditions,
    )
