"""`python -m tinymlaas_optimizer`: serve the optimizer, configured by TINYMLAAS_* variables."""

from tinymlaas_optimizer.plugin import plugin

if __name__ == "__main__":
    plugin().main()
