"""The room of the machine: configuration, the fast and resumable search, checkpoints, processes."""
