"""What a module's memory is for: the fields, in bytes, of a ``memory`` record. Each storage counts in one of them."""

CATEGORIES = (
    "parameters",  # weights and batch-norm statistics
    "gradients",  # of the weights, during the step
    "optimizer",  # its state, such as momentum
    "history",  # features of earlier batches, and of this one, that will be replayed (FR)
    "activations",  # what autograd saved, in every graph that is alive
    "stash",  # copies of the weights on which graphs in flight were built (DDG)
    "synthesizer",  # its weights, optimizer and graph (DNI); those of the auxiliary network (DGL)
    "buffers",  # of the channels to the neighbours
)
# Those of what a method keeps from one iteration to the next (fr_bench.methods.base.Method.kept_tensors).
KEPT = ("history", "stash", "synthesizer", "buffers")
# On a GPU, what the allocator's peak holds beyond all of these: workspaces, transient tensors. Never predicted.
OTHER = "other"
