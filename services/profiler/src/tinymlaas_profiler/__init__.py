"""The independent witness: runs payloads and reference executors, measures, compares."""

from tinymlaas_profiler.errors import ProfilerError
from tinymlaas_profiler.fidelity import Fidelity, check_numerics, compare
from tinymlaas_profiler.native import Profile, profile_native, supported_target
from tinymlaas_profiler.reference import ReferenceRun, profile_tflite, reference
from tinymlaas_profiler.worker import Limits

__all__ = [
    "Fidelity",
    "Limits",
    "Profile",
    "ProfilerError",
    "ReferenceRun",
    "check_numerics",
    "compare",
    "profile_native",
    "profile_tflite",
    "reference",
    "supported_target",
]
