"""The workers that ship with batchq, found by name through the entry points `batchq.workers`."""
