"""Start the processes of a run, watch them, and name the one that was lost.

launch.py      ``iostack train --procs N``: N local ranks, their signals and their deaths; imports no torch
world.py       who this process is, from torchrun's environment variables or from our launcher
group.py       join and leave the process group
heartbeat.py   every rank's sign of life in the job's store; ends a rank whose peers are gone
report.py      how a rank tells why it ends
signals.py     SIGTERM and Ctrl-C as a request to stop after the step
"""
