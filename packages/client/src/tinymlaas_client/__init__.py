"""Client library of TinyMLaaS: `AsyncClient` for asyncio programs, `Client` for everything else."""

from tinymlaas_client._async_client import AsyncClient, model_format
from tinymlaas_client._requests import options_struct
from tinymlaas_client._sync_client import Client
from tinymlaas_client.policies import rollout_policy

__all__ = ["AsyncClient", "Client", "model_format", "options_struct", "rollout_policy"]
