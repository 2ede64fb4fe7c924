"""The room of judgement: training discrete cells and the table of all 512 micro cells."""
