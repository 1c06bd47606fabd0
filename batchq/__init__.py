"""A durable queue for batched prompts."""
