"""Integer kernels for quantized graphs: lowering of operators to steps, kernels as generated assembly and C."""
