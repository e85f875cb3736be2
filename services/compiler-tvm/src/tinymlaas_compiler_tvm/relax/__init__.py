"""Float graphs by way of Apache TVM: ONNX → Relax → TIR → C → LLVM, one step a fused operator. Imports tvm only when called."""
