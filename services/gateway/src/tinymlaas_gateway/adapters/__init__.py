"""What the gateway touches: its own records, the registry, plugins, bridges, the signing key, durable execution."""
