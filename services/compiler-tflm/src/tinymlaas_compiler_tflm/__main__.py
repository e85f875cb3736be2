"""Serve the plugin: `python -m tinymlaas_compiler_tflm`."""

from tinymlaas_compiler_tflm.plugin import plugin

if __name__ == "__main__":
    plugin().main()
