"""`medusa-dist distill` and `train-heads`: trains heads on the model's own answers."""
