"""What a user would run instead, as plainly as PyTorch's own documentation has it: a loop in one process,
DistributedDataParallel, and the schedules of torch.distributed.pipelining.

They share the model, its initial weights, the loss and the optimizer with fr-bench, and nothing of its loop, methods
and transport: a slow part of ours must not slow down what it is compared with.
"""

from fr_bench.peers.task import PEERS, PIPELINES, PeerTask

__all__ = ["PEERS", "PIPELINES", "PeerTask"]
