"""Gates on the finished disk."""
