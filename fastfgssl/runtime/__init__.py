"""What a process stands on: launcher, ranks, signals, errors, memory, console. Knows nothing of training."""
