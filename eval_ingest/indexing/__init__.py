"""From the windows of a source to the rows of a window index."""
