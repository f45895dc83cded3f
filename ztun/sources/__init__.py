"""Where the mesh's state comes from.

Reading order: ``reading`` (one pass over all configuration files, and what stays as the last one found it), ``files``
(watches them and gives a snapshot for each change), ``collection`` (memory while something large is built or let go).
"""
