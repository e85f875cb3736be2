"""A compiler plugin that hands an int8 TFLite model to an interpreter on the device, unchanged."""

from tinymlaas.plugin.v1.compiler_pb2 import CheckModelResult, CompileResult, OperatorSupport
from tinymlaas.type.v1 import target_pb2, tensor_pb2
from tinymlaas_modelkit.check import TensorReport, check_model
from tinymlaas_pluginkit import CompileJob, CompileOutput, Compiler, Limits, OpUnsupported, Plugin, Reporter

KNOWN = {"AVERAGE_POOL_2D", "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "RESHAPE", "SOFTMAX"}
OPTIONS = {
    "type": "object",
    "additionalProperties": False,
    "properties": {"arena_bytes": {"type": "integer", "minimum": 1024, "maximum": 1 << 24, "default": 65536}},
}


def tensor(report: TensorReport) -> tensor_pb2.TensorSpec:
    dtype = tensor_pb2.DataType.Value(f"DATA_TYPE_{report.dtype.upper()}")
    scale, zero_point = report.scale or 0.0, report.zero_point or 0
    return tensor_pb2.TensorSpec(name=report.name, dtype=dtype, shape=report.shape, scale=scale, zero_point=zero_point)


def check(job: CompileJob, report: Reporter) -> CheckModelResult:
    operators = check_model(job.model, "tflite").operators  # raises MODEL_INVALID and the like by itself
    verdicts = [OperatorSupport(operator=o, count=n, supported=o in KNOWN) for o, n in sorted(operators.items())]
    if missing := [v for v in verdicts if not v.supported]:
        error = OpUnsupported(missing[0].operator, count=sum(v.count for v in missing))
        return CheckModelResult(supported=False, operators=verdicts, error=error.to_status())
    return CheckModelResult(supported=True, operators=verdicts)


def compile_model(job: CompileJob, report: Reporter) -> CompileOutput:
    report.progress("read the model", 0.1)
    model = check_model(job.model, "tflite")
    if missing := sorted(set(model.operators) - KNOWN):
        raise OpUnsupported(missing[0])
    result = CompileResult(
        payload_kind=target_pb2.PAYLOAD_KIND_TFLITE,
        arena_bytes=job.options["arena_bytes"],  # a claim; the platform measures it
        arena_alignment=16,
        inputs=map(tensor, model.inputs),
        outputs=map(tensor, model.outputs),
        operators=sorted(model.operators),
    )
    setattr(result.numerics, "class", tensor_pb2.Numerics.CLASS_BIT_EXACT)
    result.numerics.reference = tensor_pb2.REFERENCE_TFLITE
    return CompileOutput(result, payload=job.model)


TARGET = target_pb2.TargetConstraint(payload_kind=target_pb2.PAYLOAD_KIND_TFLITE, runtime="tflite-micro")
compiler = Compiler(compile_model, check, [TARGET], [tensor_pb2.MODEL_FORMAT_TFLITE], OPTIONS)
plugin = Plugin("com.example.hello-compiler", "1.0.0", compiler=compiler, limits=Limits(max_model_bytes=8 << 20))

if __name__ == "__main__":
    plugin.main()
