"""Where the mesh's state comes from.

Reading order: ``reading`` (one pass over all configuration files, and what stays as the last one found it),
``watching`` (word of changes, or a look from time to time), ``files`` (follows them and gives a snapshot for each
change), ``collection`` (memory while something large is built or let go).
"""
