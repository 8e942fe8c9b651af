"""Fine-tuning on votes: batches and objective (pure), loop (torch, no ray), runner (the only ray.train)."""
