"""`medusa-dist distill` and `train-heads`: heads trained on the model's own answers."""
