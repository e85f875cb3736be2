"""The gateway: authentication, routing by capability, builds (the race of compilers) and deployments."""

__version__ = "0.1.0"
