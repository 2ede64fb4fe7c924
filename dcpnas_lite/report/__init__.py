"""The room of pictures and words: the history of a search, plots, a rule beside the source's."""
