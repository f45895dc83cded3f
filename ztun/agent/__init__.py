"""The node agent: capture for pods that are network namespaces, and the other end of the node proxy's ZDS.

Reading order: ``rules`` (the redirect rules as text), ``pod_namespace`` (a namespace held open), ``capture`` (rules
loaded and undone exactly), ``enrolments`` (who is enrolled, on disk), ``pod_documents`` (who is wanted),
``conversation`` and ``proxies`` (ZDS), ``agent`` (the loop that brings everybody where they should be), ``commands``
and ``control`` (what a user asks of it), ``without_agent`` (one's own namespace), ``process`` (all of it together).
"""
