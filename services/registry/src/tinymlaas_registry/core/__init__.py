"""What the registry knows, without gRPC, SQL or files."""
