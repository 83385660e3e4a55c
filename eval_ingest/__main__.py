"""The program `eval-ingest`, also `python -m eval_ingest`: what comes before the first import.

What doesn't belong here: anything that needs one; the command line is cli.py.
"""

# PYTHON_ARGCOMPLETE_OK: for those who have argcomplete complete every Python program.
import signal
import sys


def main() -> int:
    """Run the command line."""
    # Ctrl-C ends a program that is only being imported, without a traceback; commands look for it
    # themselves: see interrupts.py. Who began us may have it ignored.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from eval_ingest.cli import main

    return main()


if __name__ == "__main__":
    sys.exit(main())
