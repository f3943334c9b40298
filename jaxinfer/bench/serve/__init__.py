"""Load on a server that speaks OpenAI's API: what its users would wait for, and how much it does.

`workload` draws requests, `client` sends one and takes its times, `load` sends many as a row of a
result asks, `statistics` makes the row, `counters` reads /metrics, `pictures` draws. Nothing here
knows whose server it is.
"""
