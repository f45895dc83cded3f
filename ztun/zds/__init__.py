"""ZDS, by which a node agent (istio-cni, ``ztun agent``) tells the node proxy of its pods and their namespaces.

Reading order: ``messages`` (the packets of both sides, bytes to frozen values and back), ``roster`` (which pods the
proxy is to serve, as a state machine), ``client`` (the proxy's end of the socket), ``metrics``,
``settings``.
"""
