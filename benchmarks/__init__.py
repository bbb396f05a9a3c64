"""Speed and memory, measured on the shipped `banyan run` across processes; see `python -m benchmarks --help`.

One module per benchmark, each with ``async def measure(options: Options) -> list[Row]``. What they stand on:

    records   a row, a result file, the table that is printed
    report    docs/performance.md's tables, from the result files
    gauges    what /proc says of a process: memory, processor time, wakeups, bytes written; the disk's fdatasync
    harness   a tree of real controllers, one process each
    standin   a cluster that answers at once, behind the shim contract, for rows that are about propagation
    http      a small client for load and for many watches from one process
    network   a link of its own in a network namespace, and its byte counters
"""
