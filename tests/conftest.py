"""The environment of all tests: set here, so that `pytest` alone does what `make test` does."""

import os
import signal

# Stages run in forked children of a process that has used torch: with several OpenMP threads such a child hangs.
os.environ["OMP_NUM_THREADS"] = "1"
for name, value in {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "WANDB_MODE": "offline"}.items():
    os.environ.setdefault(name, value)

# A job started in the background inherits SIGINT ignored, and so would every process that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# So does SIGHUP under `nohup`.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
