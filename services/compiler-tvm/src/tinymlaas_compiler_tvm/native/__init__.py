"""Native modules: programs of steps over one arena, planned, generated as C and assembly, compiled, linked to a flat payload."""
