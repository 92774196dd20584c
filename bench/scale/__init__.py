"""One video over several GPUs: how fast, and how near to one GPU. Each GPU has a process, which measures the same."""
