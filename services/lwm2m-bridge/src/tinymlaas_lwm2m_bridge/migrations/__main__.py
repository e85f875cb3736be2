"""Change the bridge's tables: `python -m tinymlaas_lwm2m_bridge.migrations [upgrade|downgrade REVISION]`."""

from tinymlaas_lwm2m_bridge.schema import SCHEMA
from tinymlaas_lwm2m_bridge.settings import LwM2mBridgeSettings

if __name__ == "__main__":
    SCHEMA.main(LwM2mBridgeSettings().resolve_database_url())  # type: ignore[call-arg]
