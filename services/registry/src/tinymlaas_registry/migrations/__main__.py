"""Change the registry's tables: `python -m tinymlaas_registry.migrations [upgrade|downgrade REVISION]`."""

from tinymlaas_registry.adapters.sql import SCHEMA
from tinymlaas_registry.settings import RegistrySettings

if __name__ == "__main__":
    SCHEMA.main(RegistrySettings().resolve_database_url())
