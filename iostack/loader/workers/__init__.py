"""Worker processes: Python transforms that hold the GIL run in them, in the order and with the results of threads.

    consumer ──task──> Pool ──seat──> process: Readers.do(task) ──slot──> columns

Read ``pool``, then ``process`` (one worker, as its parent sees it), ``worker`` (what runs in it), and what lies between
the two: ``slots`` (memory), ``messages`` (what stands in it), ``notes`` (which sample a worker is at).
"""
