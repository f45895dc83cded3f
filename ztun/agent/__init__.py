"""The node agent: capture for pods that are network namespaces, and the other end of the node proxy's ZDS.

Reading order: ``rules`` (the redirect rules as text), ``pod_namespace`` (a namespace held open), ``record`` and
``traces`` (what was done to it, what is found in it), ``capture`` (rules loaded and undone exactly),
``enrolments`` (who is enrolled, on disk), ``annotations`` and ``pod_documents`` (who is wanted), ``conversation`` and
``proxies`` (ZDS), ``members`` and ``agent`` (the loop that brings everybody where they should be, and what happens
when), ``commands`` and ``control`` (what a user asks of it), ``without_agent`` (one's own namespace: dedicated mode),
``process`` (all of it together); ``places`` and ``unix_socket`` on the side.
"""
