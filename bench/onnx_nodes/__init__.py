"""ONNX's own operator tests (`onnx.backend.test`) through compile → simulated Cortex-M4 → compare, float and QDQ."""
