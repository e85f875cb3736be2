"""The CoAP side of the bridge."""
