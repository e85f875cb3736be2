"""The bridge's core: registrations, capabilities, installs. No gRPC, no SQL, no network."""
