"""Bytes to arrays, judged: a window's metadata, rasters and labels become a sample, or problems.

Nothing is listed or fetched here: readers of sources/ hand the bytes.
"""
