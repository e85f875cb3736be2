"""Child process: `python -m tinymlaas_compiler_tflm.tensorflow_job SOURCE PATH RESULT MEMORY SECONDS`.

Converts a Keras archive or a SavedModel to float TFLite with batch 1. A model that TensorFlow refuses ends with
status 3 and
the reason in the file `refused` beside the result.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Any

REFUSED = 3


def keras_converter(tf: Any, path: Path) -> Any:
    """A converter for a Keras archive; safe mode: lambdas and other code in the archive are refused."""
    model = tf.keras.models.load_model(str(path), compile=False, safe_mode=True)
    specs = [
        tf.TensorSpec([1, *tensor.shape[1:]], tensor.dtype, name=f"input_{i}") for i, tensor in enumerate(model.inputs)
    ]
    function = tf.function(lambda *inputs: model(list(inputs) if len(inputs) > 1 else inputs[0], training=False))
    return frozen_converter(tf, function.get_concrete_function(*specs))


def saved_model_converter(tf: Any, path: Path) -> Any:
    """A converter for the serving signature of a SavedModel, batch 1."""
    loaded = tf.saved_model.load(str(path))
    if not loaded.signatures:
        raise ValueError("the SavedModel has no signature")
    name = "serving_default" if "serving_default" in loaded.signatures else sorted(loaded.signatures)[0]
    signature = loaded.signatures[name]
    given = signature.structured_input_signature[1]
    specs = {key: tf.TensorSpec([1, *spec.shape[1:]], spec.dtype, name=key) for key, spec in given.items()}
    function = tf.function(lambda **inputs: signature(**inputs))
    return frozen_converter(tf, function.get_concrete_function(**specs))


def frozen_converter(tf: Any, function: Any) -> Any:
    """A converter for a function with its variables made constants: a microcontroller's runtime has no variables to
    load."""
    from tensorflow.python.framework.convert_to_constants import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
        convert_variables_to_constants_v2,
    )

    return tf.lite.TFLiteConverter.from_concrete_functions([convert_variables_to_constants_v2(function)])


def main(source: str, path: str, result: str, memory: str, seconds: str) -> int:
    """Convert one model."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (4 * int(seconds), 4 * int(seconds)))
    import tensorflow as tf  # type: ignore[import-untyped, import-not-found, unused-ignore]  # heavy, and only here

    # After loading, so that the limit holds for the model rather than for what TensorFlow maps at start.
    resource.setrlimit(resource.RLIMIT_DATA, (int(memory), int(memory)))
    try:
        converter = keras_converter(tf, Path(path)) if source == "keras" else saved_model_converter(tf, Path(path))
        # Only builtin operators: neither TFLite Micro nor ONNX has TensorFlow's own.
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        data = converter.convert()
    except Exception as error:  # TensorFlow raises its own types for anything wrong with a model
        first = next((line for line in str(error).splitlines() if line.strip()), "")
        folder = Path(result).parent
        said = f"{type(error).__name__}: {first}".replace(str(folder), "")
        (folder / "refused").write_text(said[:300], "utf-8")
        return REFUSED
    Path(result).write_bytes(data)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
