"""`python -m tinymlaas_profiler`: serve the profiler, configured by TINYMLAAS_* variables."""

from tinymlaas_profiler.plugin import plugin

if __name__ == "__main__":
    plugin().main()
