"""Random histories of a queue: a producer, runners, an operator and a coordinator around the real store.

`stage` says who acts and with what, `arena` holds the store and its clock, each actor has a file, the judges have
four: `judge` (what is true at any time), `exchanges`, `limits` and `lanes` (what one exchange may do). `queue_machine`
lets Hypothesis put the acts in any order; `mutants` are stores with a mistake that the judges must find, and
`histories` the shortest ways to do so.
"""
