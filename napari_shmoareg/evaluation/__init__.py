"""Methods on pairs: runs, tables, comparisons."""
