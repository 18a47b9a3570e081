"""What every training shares: checkpoints, progress, processes, hardware, statistics."""
