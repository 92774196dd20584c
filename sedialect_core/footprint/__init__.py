"""What a pipeline will take, from its configuration alone: its models on the device meta, memory, cards that it fits."""
