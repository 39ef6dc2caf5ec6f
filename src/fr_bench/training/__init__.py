"""The loop over mini-batches, and what is looked at in between: evaluation, memory, the direction of gradients."""
