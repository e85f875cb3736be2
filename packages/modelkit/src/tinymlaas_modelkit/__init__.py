"""Read, check and convert model files: ONNX and TFLite, float and int8."""
