"""What holds a machine back: it is looked at, each part of the trainer is timed on it, and what would help is tried."""
