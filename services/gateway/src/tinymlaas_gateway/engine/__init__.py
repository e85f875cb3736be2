"""What the gateway does, step by step: builds, deployments, explanations. Steps are repeatable; `durable` orders them."""
