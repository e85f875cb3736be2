"""Change the gateway's tables: `python -m tinymlaas_gateway.migrations [upgrade|downgrade REVISION]`."""

from tinymlaas_gateway.adapters.schema import SCHEMA
from tinymlaas_gateway.settings import GatewaySettings

if __name__ == "__main__":
    SCHEMA.main(GatewaySettings().resolve_database_url())  # type: ignore[call-arg]
