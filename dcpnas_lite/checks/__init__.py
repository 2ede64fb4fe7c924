"""The room of the checks: the table of the equations and the reader's bench."""
