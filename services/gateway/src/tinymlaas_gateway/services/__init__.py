"""Servicers: they map messages and calls to the engine, and decide nothing."""
