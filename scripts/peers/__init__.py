"""Benchmarks of Foil against other libraries, its peers: the Python side of scripts/bench.

A *row* of the table is a list of cases; a *case* is one workload that several *implementations* run. Each
implementation is a process (or two, data-parallel) that loads once and then repeats the same work, so that repetitions
of all implementations can alternate: a temporary slowdown of the machine affects all of them.

    workload.py    the workload of an implementation, as the JSON file that both sides read
    serve.py       the peers' side of the protocol; Foil's side is the program foil-bench
    process.py     the bench's side: starts an implementation, requests repetitions, reads its peak memory
    case.py        a benchmark case, and how it is run: warm-ups, alternating repetitions, medians
    parity.py      checks that implementations computed the same results; if not, the case is void
    data.py        token rows from the data sets
    flops.py       the minimum arithmetic of a workload
    table.py       the rows run so far and the skipped ones
    report.py      the table, the JSON file and RESULTS.md
    row_*.py       the rows
    run_*.py       the peers, each a separate program

Run it through scripts/bench, which first installs and builds missing parts.
"""
