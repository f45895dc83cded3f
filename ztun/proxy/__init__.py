"""The node proxy: what happens to a connection between its capture and its last byte.

Reading order: ``plane`` (what all parts share), ``connections`` (those that are open, and how they end), ``site``
(the namespace that connections are made from), ``connector`` (reaching the next hop), ``routers`` (the routing
engine's view of the mesh), ``tunnels`` (accepting HBONE), ``outbound`` (from a local pod), ``destinations`` and
``sidecar`` (the same by the rules of an engine), ``inbound`` (a tunnel to a local pod), ``application`` (dialling
what is in it), ``passthrough`` (plaintext to a local pod), ``captures`` (redirected traffic), ``resolving`` (names),
``pods`` (the listeners of each pod), ``inpod`` (the pods that an agent names, each in its namespace), ``entries``
(ways in without capture: forwards and SOCKS5), ``node`` (the role), ``runtime`` (start, reload, drain of any role),
``process`` and ``descriptors`` (what a proxy process asks of the system).
"""
