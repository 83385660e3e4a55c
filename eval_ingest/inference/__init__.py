"""What a dataset's configuration means: texts in, a ResolvedConfig out.

Nothing is fetched, imported or instantiated here, and no window is looked at.
"""
