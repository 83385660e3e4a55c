"""Object stores behind URLs. Everything that talks to gcsfs, s3fs and the like is in here.

What the objects mean is said elsewhere: sources/remote.py for sources, store/ for eval roots.
"""
