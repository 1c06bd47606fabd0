"""Workers as services of systemd: the units that ship with batchq, put into their places and taken away again."""
