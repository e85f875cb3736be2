"""Decisions as functions of values: what a resource asks for, the objects that it becomes, its conditions."""
