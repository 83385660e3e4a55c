"""From the index to the copy: windows copied, samples packed, and the files that rslearn reads.

What these files are made of is store/; which windows are wanted is indexing/.
"""
