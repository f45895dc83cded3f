"""What is in the mesh, as immutable values, and the pure decisions made from them.

Reading order: ``model`` (workloads, services, policies), ``document`` (configuration as it was written),
``snapshot`` (one state of the mesh with its indices), ``address`` (``host:port`` text), ``names`` (short names),
``balance`` (choice of an endpoint), ``gateway`` (waypoints), ``lookup`` (where an outbound connection goes),
``inbound`` (what a CONNECT request asks for), ``authorization`` (whether a connection may be), ``baggage`` (what a
tunnel says about its source). Nothing here opens a socket, reads a clock or draws a random number of its own.
"""
