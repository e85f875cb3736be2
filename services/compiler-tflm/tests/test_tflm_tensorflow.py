"""Keras archives and SavedModels, with the real TensorFlow where the extra is installed."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tflite_micro.python.tflite_micro import runtime

from tinymlaas_compiler_tflm.importer import ResultFormat, SourceFormat, has_tensorflow, import_model
from tinymlaas_modelkit.errors import MalformedModel
from tinymlaas_modelkit.summary import summarize

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not has_tensorflow(), reason="TensorFlow is missing: run `make tensorflow`"),
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(scope="module")
def keras_model() -> Any:
    import tensorflow as tf  # type: ignore[import-untyped, import-not-found, unused-ignore]

    tf.keras.utils.set_random_seed(1)
    layers = tf.keras.layers
    image = tf.keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu")(image)
    x = layers.ReLU()(layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same")(x)))
    both = layers.Concatenate()([layers.Dense(10)(layers.Flatten()(x)), layers.GlobalAveragePooling2D()(x)])
    return tf.keras.Model(image, layers.Dense(4, activation="softmax")(both))


def archive(model: Any, source: SourceFormat, folder: Path) -> bytes:
    if source is SourceFormat.KERAS:
        model.save(folder / "m.keras")
        return (folder / "m.keras").read_bytes()
    model.export(str(folder / "saved"))
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        tar.add(folder / "saved", "model")
    return out.getvalue()


@pytest.mark.parametrize("source", [SourceFormat.KERAS, SourceFormat.SAVED_MODEL])
def test_imported_model_computes_what_keras_computes(keras_model: Any, tmp_path: Path, source: SourceFormat) -> None:
    data = archive(keras_model, source, tmp_path)
    tflite = import_model(data, source, ResultFormat.TFLITE)
    inputs = np.random.default_rng(3).normal(size=(3, 16, 16, 3)).astype(np.float32)
    interpreter = runtime.Interpreter.from_bytes(tflite, arena_size=1 << 20)
    for sample, expected in zip(inputs, keras_model(inputs).numpy(), strict=True):
        interpreter.set_input(sample[None], 0)
        interpreter.invoke()
        np.testing.assert_allclose(interpreter.get_output(0)[0], expected, rtol=1e-5, atol=1e-6)
    onnx = import_model(data, source, ResultFormat.ONNX)
    assert onnx == import_model(data, source, ResultFormat.ONNX)
    assert summarize(onnx).macs == summarize(tflite).macs > 0


def test_archive_with_code_is_refused(tmp_path: Path) -> None:
    import tensorflow as tf

    image = tf.keras.Input((4,))
    model = tf.keras.Model(image, tf.keras.layers.Lambda(lambda x: x + 1)(image))
    data = archive(model, SourceFormat.KERAS, tmp_path)
    with pytest.raises(MalformedModel) as caught:
        import_model(data, SourceFormat.KERAS, ResultFormat.TFLITE)
    assert str(tmp_path) not in str(caught.value)
