"""`epollkit demo`: three servers in turn under the same hostile crowd, and what became of its connections.

    application.py  what all three servers do with a request; its orders make stale events on purpose
    servers.py      the server processes: epollkit, and the same with one bit of generation
    naive.py        the twin on select.epoll, keyed by fd
    crowd.py        a client process: five hundred connections that churn, reset, half-close, pipeline and give orders
    peer.py         one connection of the crowd
    children.py     processes, and the lines of JSON between them and the runner
    runner.py       starts the processes, plays the rounds, ends everything
    report.py       a column per server, the verdict, the table
    view.py         progress: live on a terminal, plain lines in a pipe
"""
