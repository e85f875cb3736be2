"""What the LwM2M bridge holds at fleet size: storms, steady updates, a rollout over a bad link, hostile bytes."""
