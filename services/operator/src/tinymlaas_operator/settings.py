"""Settings of the operator, from environment variables `TINYMLAAS_*`."""

from __future__ import annotations

from pydantic import Field

from tinymlaas_servicekit import ServiceSettings


class OperatorSettings(ServiceSettings):
    """What the chart tells the operator."""

    api_server: str = Field(
        default="", description="URL, such as that of kubectl proxy; empty: the cluster of this pod"
    )
    namespace: str = Field(default="", description="namespace that is watched; empty: the pod's own")
    instance: str = Field(default="tinymlaas", description="the release: label app.kubernetes.io/instance of its pods")
    manifest_secret: str = Field(default="tinymlaas-vendor-plugins", description="Secret that the gateway mounts")
    generated_secret: str = Field(default="tinymlaas-generated", description="Secret that `secrets` makes")
    trusted_images: list[str] = Field(
        default_factory=list, description="prefixes of images that may be trusted, as a JSON list"
    )
    runtime_class: str = Field(default="", description="RuntimeClass of untrusted plugins, such as gvisor")
    max_replicas: int = Field(default=10, ge=1, description="most replicas of one plugin")
    plugin_tls_prefix: str = Field(
        default="tinymlaas-tls-",
        description="with mTLS: beginning of the names of the Secrets with plugins' certificates",
    )
    round_seconds: float = Field(default=3.0, gt=0, description="pause between two looks at the cluster")
