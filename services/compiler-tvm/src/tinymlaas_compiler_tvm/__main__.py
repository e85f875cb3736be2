"""`python -m tinymlaas_compiler_tvm`: serve the compiler, configured by TINYMLAAS_* variables."""

from tinymlaas_compiler_tvm.plugin import plugin

if __name__ == "__main__":
    plugin().main()
