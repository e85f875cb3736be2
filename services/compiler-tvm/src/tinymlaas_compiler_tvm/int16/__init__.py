"""Integer kernels for int16 activations with int8 weights (TFLite's 16x8 mode), as generated C."""
