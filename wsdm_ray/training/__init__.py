"""Fine-tuning on votes.

batches, objective, metrics   pure functions and records
policy, model, optimizer      what a run is made of
health, distributed, loop     one worker's steps (torch, no ray)
sinks                         where the metrics of every step go
check, publish                before and after the workers run (no ray)
worker, progress, runner      on Ray Train
"""
