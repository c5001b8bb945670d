"""What every other room stands on: errors, processes, paths, digests, locks, events."""
