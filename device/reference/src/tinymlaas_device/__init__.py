"""Reference devices: a virtual board that executes real firmware, a TFLite Micro device, both LwM2M clients."""
