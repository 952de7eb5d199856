"""TensorRT engines made from a bundle: compiled on the card they are for, or ahead of time for named ones."""
