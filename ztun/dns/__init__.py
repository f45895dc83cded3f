"""The DNS proxy: names of the mesh are answered for the pods that ask, everything else is passed on untouched.

Reading order: ``zone`` (what the mesh knows about a name), ``messages`` (DNS messages), ``local`` (both together) and
``memory`` (these four are pure), ``nameservers`` and ``upstream`` (asking elsewhere), ``stub`` and
``lookups`` (resolving for the proxy itself), ``udp`` and ``tcp`` (the listeners), ``proxy`` (all of it for one pod).
"""
