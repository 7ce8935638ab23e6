"""Foil beside its peers: the Python side of scripts/bench.

A *row* of the table is a list of contests; a *contest* is one piece of work that several *contestants* do. Each
contestant is a process (or two, data-parallel) that loads once and then does the same repetition again and again, so
that repetitions of all contestants can alternate: what slows the machine for a while slows all of them.

    workload.py    what a contestant is asked to do, as the JSON file that both sides read
    serve.py       the contestant's side of the protocol, for the peers; Foil's is the program foil-bench
    process.py     the bench's side of it: starts a contestant, asks for repetitions, learns its peak memory
    contest.py     what a contest is; runs one: warm-ups, alternating repetitions, medians
    parity.py      whether contestants computed the same thing; if not, the contest is void
    data.py        token rows from the data sets
    flops.py       how much arithmetic a workload needs at the least
    table.py       the rows held so far, and those that could not be
    report.py      the table, the JSON file and RESULTS.md
    row_*.py       the rows
    run_*.py       the peers, each a program of its own

Run it through scripts/bench, which first installs and builds what is missing.
"""
