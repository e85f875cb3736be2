"""Client library of TinyMLaaS: `AsyncClient` for asyncio programs, `Client` for everything else."""

from tinymlaas_client._async_client import AsyncClient, model_format, options_struct
from tinymlaas_client._sync_client import Client

__all__ = ["AsyncClient", "Client", "model_format", "options_struct"]
