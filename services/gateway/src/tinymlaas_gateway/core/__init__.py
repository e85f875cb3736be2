"""Decisions as pure functions of values: no gRPC, no SQL, no network, no clock."""
