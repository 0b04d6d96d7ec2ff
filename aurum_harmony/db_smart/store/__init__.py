"""What is kept in the databases and beside them: the history, the lock, the snapshots."""
