"""What people see on a terminal: sentences on stderr, numbers as words, a batch's progress."""
