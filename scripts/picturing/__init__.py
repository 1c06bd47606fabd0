"""Pictures of batchq on a terminal, for the README."""
