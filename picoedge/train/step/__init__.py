"""One step of training: gradients of micro-batches, their sum, the optimizer."""
