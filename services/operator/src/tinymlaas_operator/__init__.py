"""Kubernetes operator of the suite: a CompilerPlugin resource becomes a sandboxed container that the gateway knows."""
