"""The north-south gateway: connections from outside the mesh to services inside.

Reading order: ``places`` (which addresses and ports the configuration asks for, pure), ``view`` (the state that a
connection is served by), ``listeners`` (sockets that come and go), ``credentials``, ``server_context``, ``admitted``
and ``termination`` (TLS that ends here), ``gatekeeper`` (policies), ``ingress`` (a connection from its arrival to its
relay), ``role`` (what the runtime drives), ``process``.
"""
